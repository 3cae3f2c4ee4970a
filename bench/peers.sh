# What bench/translation and bench/training share: the environment of their peers.

# Sets `venv`; makes it, with the wheels of bench/translation.txt, when it is not there.
make_translation_environment() {
  local root=$1 package
  venv=$root/build-bench/translation
  "$venv/bin/python" -c 'import ctranslate2, transformers, sentencepiece, torch' 2>/dev/null && return
  echo "Making an environment in $venv" >&2
  rm -rf "$venv"
  mkdir -p "$root/build-bench"
  python3 -m venv "$venv"
  while read -r package; do
    case $package in '#'* | '') continue ;; esac
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$package"
  done <"$root/bench/translation.txt"
}
