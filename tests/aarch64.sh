#!/usr/bin/env bash
# Builds the engine and its tests for AArch64 with Debian's cross compiler and runs them under qemu, so that NEON is
# tested on an x86 machine; bits_test compares with what x86's targets gave. Debian 12, as root or with sudo. Installs the
# compiler and qemu into the system; the arm64 Highway goes into build-aarch64/ alone. One to two minutes, three the first time.
# Usage: tests/aarch64.sh [gtest options]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=.ci/prepare.sh
source .ci/prepare.sh
build=$PWD/build-aarch64
mkdir -p "$build"
log=$build/setup.log
: >"$log"

# Not memory_test: it counts pages, and under qemu those are qemu's. bits_test is the longest, 35 s.
programs=(attention_test bits_test cache_test check_test lattice_test linear_test mask_test norm_test plan_test probe_test rotary_test score_test
  second_test steps_test threads_test heed_c_test)
cross=(
  -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_BUILD_TYPE=Release
  -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
)
root=$build/root

# The packages are unpacked, not installed: arm64 as a second architecture of the system would outlive this test. apt is
# given lists and a cache of its own for it.
fetch_highway() {
  local apt=(
    -o Dir::State::Lists="$build/apt/lists" -o Dir::Cache="$build/apt/cache" -o Dir::State::Status=/dev/null
    -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User="$(id -un)"
  )
  mkdir -p "$build/apt/lists/partial" "$build/apt/cache/archives/partial"
  logged apt-get "${apt[@]}" update -q
  (cd "$build/apt" && logged apt-get "${apt[@]}" download libhwy-dev libhwy1)
  local package
  for package in "$build"/apt/*.deb; do logged dpkg-deb -x "$package" "$root"; done
}

build_googletest() {
  logged cmake -S /usr/src/googletest -B "$build/googletest" "${cross[@]}" -DBUILD_GMOCK=OFF \
    -DCMAKE_INSTALL_PREFIX="$root/usr" -DCMAKE_INSTALL_LIBDIR=lib
  logged cmake --build "$build/googletest" -j "$(jobs)"
  logged cmake --install "$build/googletest"
}

configure() {
  logged cmake -S . -B "$build/heed" "${cross[@]}" -DHEED_TORCH=OFF -DHEED_TESTS=ON \
    -DHWY_INCLUDE_DIR="$root/usr/include" -DHWY_LIBRARY="$root/usr/lib/aarch64-linux-gnu/libhwy.so.1" \
    -DGTest_ROOT="$root/usr"
}

start=$SECONDS
ensure_packages g++ cmake ninja-build libgtest-dev g++-aarch64-linux-gnu qemu-user
[ -e "$root/usr/lib/aarch64-linux-gnu/libhwy.so.1" ] || phase "Fetching Highway for arm64" fetch_highway
[ -e "$root/usr/lib/libgtest_main.a" ] || phase "Building GoogleTest" build_googletest
phase "Configuring" configure
build=$build/heed
phase "Building" compile "${programs[@]}"

export QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
echo "==> Testing"
failed=0
for program in "${programs[@]}"; do
  began=$SECONDS
  if qemu-aarch64 "$build/tests/$program" "$@" >"$build/$program.log" 2>&1; then
    result=passed
  else
    result="FAILED, see $build/$program.log"
    failed=$((failed + 1))
    grep -B 1 -A 12 -m 3 -iE 'failure|failed|error' "$build/$program.log" || tail -n 15 "$build/$program.log"
  fi
  printf '    %-15s %s, %d s\n' "$program" "$result" $((SECONDS - began))
done
[ "$failed" = 0 ] || die "$failed of ${#programs[@]} programs failed"
# Proof that it is NEON that ran.
if [ $# = 0 ] && ! grep -q '/NEON' "$build/lattice_test.log"; then die "$build/lattice_test.log names no target NEON"; fi
echo "All ${#programs[@]} programs passed on AArch64, in $((SECONDS - start)) s with building."
