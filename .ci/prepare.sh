# What ./run and ./test share, sourced by both: the packages, and the phases install and build. Debian 12 or newer.
# shellcheck shell=bash disable=SC2034

# To build and run `heed`: the compiler and tools, then the libraries (docs/design.md, section 5, says why these).
packages=(
  g++ cmake ninja-build
  libhwy-dev libtorch-dev libgloo-dev libopenblas0-openmp libdnnl-dev libmimalloc-dev libsentencepiece-dev zlib1g-dev
  libcli11-dev nlohmann-json3-dev libpng-dev libjpeg-dev libwebp-dev
)
# To run the tests, too.
test_packages=(libgtest-dev clang-14 libclang-rt-14-dev clang-format-14 valgrind gettext iproute2 procps)

build=build
log=

# Prints a phase's name, runs it, and says how long it took. The phase's own lines are indented.
phase() { # name command...
  local name=$1 start=$SECONDS
  shift
  printf '==> %s\n' "$name"
  "$@"
  printf '    %s: %d s\n' "$name" $((SECONDS - start))
}

die() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 1
}

# Runs a command with its output in the log; shows the log's end if it fails.
logged() {
  if ! "$@" >>"$log" 2>&1; then
    tail -n 15 "$log" >&2
    die "'$*' failed; all of its output is in $log"
  fi
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  else
    sudo -- "$@"
  fi
}

# Packages of the arguments that are not installed, one per line.
missing() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
  done
}

install_packages() {
  local wanted
  mapfile -t wanted < <(missing "$@")
  echo "    ${#wanted[@]} of $# packages are missing: ${wanted[*]}"
  export DEBIAN_FRONTEND=noninteractive
  logged as_root apt-get update -q
  # env, because sudo does not hand the variable on.
  logged as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${wanted[@]}"
}

# Installs what is missing; touches apt only then.
ensure_packages() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "    This is not Debian; please see that it has what Debian calls: $*"
    return
  fi
  [ -n "$(missing "$@")" ] || return 0
  [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || die "run me as root once, or install: $(missing "$@" | tr '\n' ' ')"
  phase "Installing packages" install_packages "$@"
}

# As many compilers as there are cores, and memory: LibTorch's headers take up to 2 GB each.
jobs() {
  local cores memory
  cores=$(nproc)
  memory=$(awk '/^MemAvailable/ {print int($2 / 2000000)}' /proc/meminfo)
  if [ "$memory" -lt 1 ]; then memory=1; fi
  if [ "$memory" -lt "$cores" ]; then echo "$memory"; else echo "$cores"; fi
}

# Shows ninja's "[12/80]" as one line redrawn on a terminal, elsewhere as a line every tenth of the way.
show_build() {
  local line share shown=-1
  while IFS= read -r line; do
    printf '%s\n' "$line" >>"$log"
    # "[0/2]" is ninja looking whether there are new files.
    if [[ $line =~ ^\[([1-9][0-9]*)/([0-9]+)\] ]]; then
      share=$((10#${BASH_REMATCH[1]} * 100 / 10#${BASH_REMATCH[2]}))
      if [ -t 1 ]; then
        printf '\r    %3d%%  %s of %s' "$share" "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
      elif [ $((share / 10)) -gt "$shown" ]; then
        shown=$((share / 10))
        printf '    %3d%%  %s of %s\n' "$share" "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
      fi
    fi
  done
  if [ -t 1 ]; then printf '\r\033[K'; fi
}

compile() { # ninja arguments...
  if ! cmake --build "$build" -j "$(jobs)" -- "$@" 2>&1 | show_build; then
    grep -v '^\[' "$log" | tail -n 40 >&2
    die "the build failed; all of its output is in $log"
  fi
}

# Configures once, or when the options differ from those of last time, and builds what changed.
ensure_built() { # "cmake options" ninja arguments...
  local options=$1 option stale=
  shift
  # A folder that was configured elsewhere (a moved or copied checkout) cannot be used.
  if [ -f "$build/CMakeCache.txt" ] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" "$build/CMakeCache.txt"; then
    rm -rf "$build"
  fi
  mkdir -p "$build"
  log=$PWD/$build/setup.log
  [ -f "$build/build.ninja" ] || stale=yes
  for option in $options; do
    grep -q "^${option%%=*}:[A-Z]*=${option#*=}\$" "$build/CMakeCache.txt" 2>/dev/null || stale=yes
  done
  if [ -n "$stale" ]; then
    # shellcheck disable=SC2086  # the options are words
    phase "Configuring" logged cmake --preset release ${options:+$(printf -- '-D%s ' $options)}
  fi
  phase "Building" compile "$@"
}

mkdir -p "$build"
log=$PWD/$build/setup.log
: >"$log"
