#!/usr/bin/env bash
# The arrows of docs/design.md, section 1: include <- src <- libtorch <- apps. Usage: arrows_test.sh ROOT
set -euo pipefail
cd "$1"
bad=0
# no FOLDER PATTERN WHY: nothing under FOLDER may include what matches
no() {
  local found
  found=$(grep -rnE --include='*.h' --include='*.cc' --include='*.c' "#include *[<\"]($2)" $1 || true)
  if [ -n "$found" ]; then echo "$3:"; echo "$found"; bad=1; fi
}
no "include src" 'torch/|ATen/|c10/' "LibTorch below libtorch/"
no "include src" 'libtorch/|apps/' "the engine looks up"
no "include" 'hwy/|plan\.h|passes\.h' "a public header shows the engine's inside"
no "libtorch" 'apps/' "libtorch/ looks up"
no "libtorch apps" 'hwy/|src/|plan\.h|passes\.h|product-inl\.h|softmax-inl\.h|reference\.h' "the engine is entered by another door than include/heed"
# And the test can see: a file that breaks the rule is found.
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/src"; echo '#include <torch/torch.h>' > "$scratch/src/x.cc"
if (cd "$scratch"; grep -rqE --include='*.cc' '#include *[<"](torch/)' src); then :; else echo "the test is blind"; bad=1; fi
[ $bad = 0 ] && echo "the arrows point one way"
exit $bad
