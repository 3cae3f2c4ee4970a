#!/usr/bin/env bash
# Counts the instructions of three fixed workloads (instructions.cc) on the AVX2 target in one thread with callgrind, and
# compares them with data/instructions.txt: 5% more is a regression, 5% less wants to be recorded. Counts do not depend on
# what else the machine does, so they guard speed where times cannot. Skips (77) without valgrind, or where counts differ for
# other reasons: another compiler, not a release, no AVX2. Usage: instructions_test.sh [--record] PROGRAM
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
recorded=$here/data/instructions.txt
record=
if [ "${1-}" = --record ]; then record=yes; shift; fi
program=${1:?the program tests/instructions of a build folder}

skip() { echo "skipped: $1"; exit 77; }
command -v valgrind >/dev/null || skip "valgrind is not installed"
build=$("$program" build)
[ "$build" = "GCC 12" ] || skip "the counts are those of a release by GCC 12; this is: $build"

# The instructions of one workload, to stdout.
count() {
  local said status=0
  said=$(HEED_THREADS=1 valgrind --tool=callgrind --toggle-collect=counted --callgrind-out-file=/dev/null \
    "$program" "$1" 2>&1) || status=$?
  if [ "$status" != 0 ]; then echo "$said" >&2; return "$status"; fi
  sed -n 's/^==[0-9]*== Collected : \([0-9]*\)$/\1/p' <<<"$said"
}

bad=0 lines=()
for workload in prefill causal decode; do
  status=0
  now=$(count "$workload") || status=$?
  [ "$status" != 77 ] || skip "this machine, or valgrind on it, has no AVX2"
  if [ "$status" != 0 ] || ! [ "${now:-0}" -gt 0 ]; then echo "callgrind did not count '$workload'"; exit 1; fi
  lines+=("$workload $now")
  [ -z "$record" ] || continue
  was=$(awk -v w="$workload" '$1 == w {print $2}' "$recorded")
  [ -n "$was" ] || { echo "$recorded has no line '$workload'"; exit 1; }
  # In hundredths of a percent, rounded towards zero.
  change=$(((now - was) * 10000 / was))
  verdict=ok
  if [ "$change" -gt 500 ]; then verdict="REGRESSION: more than 5% over"; bad=1; fi
  if [ "$change" -lt -500 ]; then verdict="FEWER: more than 5% under; record it"; bad=1; fi
  printf '%-8s recorded %10d  now %10d  %+6.2f%%  %s\n' "$workload" "$was" "$now" "$(awk "BEGIN {print $change / 100}")" "$verdict"
done
if [ -n "$record" ]; then
  {
    echo "# Instructions of the workloads of tests/instructions.cc: GCC 12, release, AVX2, one thread. Written by"
    echo "# tests/instructions_test.sh --record build/tests/instructions"
    printf '%s\n' "${lines[@]}"
  } >"$recorded"
  cat "$recorded"
  exit
fi
if [ "$bad" != 0 ]; then echo "If the change is meant: $0 --record $program, and say why in the commit."; fi
exit "$bad"
