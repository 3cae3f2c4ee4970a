#!/usr/bin/env bash
# The nightly fuzzing: builds tests/fuzz.cc with Clang 14, libFuzzer, AddressSanitizer and UBSan in build-fuzz/ (5 minutes
# the first time) and runs it, 10 minutes unless told otherwise. What it finds stays in build-fuzz/corpus/ and begins the
# next run; what fails is written to build-fuzz/crash-*, and `build-fuzz/tests/fuzz FILE` runs it again. One SIMD target,
# this machine's best, for the compile time's sake: ctest's fuzz, which is built by GCC, draws among all of them.
# HEED_FUZZ_FLAGS takes the place of the compiler's "-O1 -g1".
# Skips (77) without clang-14 and libclang-rt-14-dev. Usage: tests/fuzz.sh [SECONDS [libFuzzer options]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-600}
shift || true

if ! command -v clang++-14 >/dev/null || ! compgen -G "/usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.fuzzer-$(uname -m).a" >/dev/null; then
  echo "skipped: clang-14 or its run-time library is not installed: apt install clang-14 libclang-rt-14-dev"
  exit 77
fi
CC=clang-14 CXX=clang++-14 cmake -S . -B build-fuzz -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="${HEED_FUZZ_FLAGS:--O1 -g1}" \
  -DCMAKE_CXX_FLAGS="-march=native -DHWY_COMPILE_ONLY_STATIC -fsanitize=fuzzer-no-link" \
  -DHEED_SANITIZE=ON -DHEED_TORCH=OFF -DHEED_APPS=OFF -DHEED_TESTS=ON >/dev/null
cmake --build build-fuzz --target fuzz
mkdir -p build-fuzz/corpus
exec build-fuzz/tests/fuzz -max_total_time="$seconds" -max_len=600 -timeout=60 -rss_limit_mb=4096 -artifact_prefix=build-fuzz/ \
  -print_final_stats=1 "$@" build-fuzz/corpus
