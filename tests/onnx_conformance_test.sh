#!/usr/bin/env bash
# ONNX's cases through Heed, and that a changed and a cut-off file are noticed. Usage: onnx_conformance_test.sh PROGRAM
# DIR; $HEED_SHARED/conformance/onnx comes before DIR.
set -euo pipefail
program=$1 cases=${HEED_SHARED:+$HEED_SHARED/conformance/onnx}
cases=${cases:-$2}
if [ ! -f "$cases/manifest.json" ]; then echo "skipped: no ONNX cases in $cases"; exit 77; fi
"$program" "$cases"
total=$("$program" "$cases" | sed -n 's/ passed, 0 failed//p')

copy=$(mktemp -d); trap 'rm -rf "$copy"' EXIT
cp -r "$cases/." "$copy"; chmod -R u+w "$copy"
expect() {  # expect LINE: what the program's last line must be, with status 1
  local said status=0
  said=$("$program" "$copy" | tail -n 1) || status=$?
  if [ "$said" != "$1" ] || [ $status != 1 ]; then echo "expected '$1' and status 1, got '$said' and $status"; exit 1; fi
}
first=$(ls "$copy" | grep '^test_' | head -n 1)
output="$copy/$first/test_data_set_0/output_0.pb"
# The last four bytes are the last value, a float: 42.
printf '\x00\x00\x28\x42' | dd of="$output" bs=1 seek=$(($(stat -c %s "$output") - 4)) conv=notrunc status=none
expect "$((total - 1)) passed, 1 failed"
truncate -s -3 "$output"
expect "$((total - 1)) passed, 1 failed"
rm -r "${copy:?}/$first"
expect "$((total - 1)) passed, 1 failed"
echo "a changed, a cut-off and a missing file are noticed"
