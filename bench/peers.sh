# What the comparisons share: the environments of their peers.

# Sets `venv`; makes it, with the wheels of bench/NAME.txt, when the modules that follow are not there.
make_environment() { # root name module...
  local root=$1 name=$2 package modules
  shift 2
  venv=$root/build-bench/$name
  modules=$(IFS=,; echo "$*")
  "$venv/bin/python" -c "import $modules" 2>/dev/null && return
  echo "Making an environment in $venv" >&2
  rm -rf "$venv"
  mkdir -p "$root/build-bench"
  python3 -m venv "$venv"
  while read -r package; do
    case $package in '#'* | '') continue ;; esac
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$package"
  done <"$root/bench/$name.txt"
}

make_translation_environment() { make_environment "$1" translation ctranslate2 transformers sentencepiece torch; }
