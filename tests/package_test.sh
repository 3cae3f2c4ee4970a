#!/usr/bin/env bash
# Builds the engine alone, installs it, and builds tests/package, a separate project, against it. LibTorch must not be on any
# compile line. The engine is built for this machine's SIMD target only and without optimising: what is packed does not
# depend on either, and both take time. Usage: package_test.sh ROOT CMAKE
set -euo pipefail
root=$1 cmake=$2
export CMAKE_GENERATOR=Ninja  # the fresh machine has no make
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
{
  "$cmake" -S "$root" -B "$work/engine" -DHEED_TORCH=OFF -DCMAKE_BUILD_TYPE=Debug \
    -DCMAKE_CXX_FLAGS="-march=native -DHWY_COMPILE_ONLY_STATIC"
  "$cmake" --build "$work/engine" -j2
  "$cmake" --install "$work/engine" --prefix "$work/prefix"
  "$cmake" -S "$root/tests/package" -B "$work/package" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_EXPORT_COMPILE_COMMANDS=ON
  "$cmake" --build "$work/package" -j2
} > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
if grep -HE 'torch/|libtorch|-ltorch|Torch_DIR' "$work"/*/compile_commands.json "$work"/*/CMakeCache.txt; then
  echo "LibTorch leaked into the engine's package"
  exit 1
fi
[ "$(find "$work/prefix" -name 'heed.h' -o -name 'attention.h' -o -name 'cache.h' -o -name 'mask.h' | wc -l)" = 4 ]
"$work/package/cxx"
"$work/package/c"
