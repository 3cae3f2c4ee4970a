# What the tests of training on several processes share, sourced by nproc_test.sh, rendezvous_test.sh and hosts_test.sh.
# The first argument of each is the program.
# shellcheck shell=bash
set -uo pipefail
set -m # jobs get process groups of their own, as on a terminal, and do not ignore Ctrl-C
heed=$(realpath "$1")
folder=$(mktemp -d)
trap 'kill -9 $(jobs -p) 2>/dev/null; rm -rf "$folder"' EXIT
cd "$folder" || exit 1
export LC_ALL=C.UTF-8 HEED_THREADS=2
checks=0 failures=0

fail() {
  failures=$((failures + 1))
  printf 'FAILED: %s\n' "$1"
  for file in "${@:2}"; do sed "s/^/    $file: /" "$file" | cut -c1-400 | tail -n 5; done
}

says() { # FILE PATTERN
  checks=$((checks + 1))
  grep -qE -- "$2" "$1" || fail "$1 does not say '$2'" "$1"
}

# Waits for process PID at most SECONDS and checks its exit code.
ends() { # PID CODE SECONDS LOG
  local code
  checks=$((checks + 1))
  for _ in $(seq $(($3 * 20))); do
    kill -0 "$1" 2>/dev/null || break
    sleep 0.05
  done
  kill -0 "$1" 2>/dev/null && fail "process still runs after $3 s" "$4" && kill -9 "$1"
  wait "$1"
  code=$?
  [ "$code" = "$2" ] || fail "exit code $code, not $2" "$4"
}

pairs() { # N SEED: sentences and their reversals
  awk -v n="$1" -v seed="$2" 'BEGIN {
    srand(seed); split("one two six ten red cat dog sun", w, " ")
    for (i = 0; i < n; ++i) {
      k = 2 + int(4 * rand()); s = t = ""
      for (j = 0; j < k; ++j) { x = w[1 + int(8 * rand())]; s = s (j ? " " : "") x; t = x (j ? " " : "") t }
      print s "\t" t
    }
  }'
}
pairs 400 1 >p.tsv
pairs 40 2 >v.tsv
pairs 399 1 >fewer.tsv
options=(--valid v.tsv --vocab 300 --arch transformer --dim 32 --heads 2 --layers 1 --ffn 64 --dropout 0 --batch-tokens 200
  --warmup 20 --patience 0 --validate-every 10 --checkpoint-seconds 1)
train() { "$heed" train translate --pairs p.tsv "${options[@]}" "$@"; }
losses() { grep -oE '"(train|valid)_loss": [0-9.e-]+' "$1/training.json"; }

same_losses() { # A B: to 1e-4
  checks=$((checks + 1))
  paste <(losses "$1") <(losses "$2") | awk '{ d = $2 - $4; if (d > 1e-4 || d < -1e-4 || NF != 4) bad = 1 } END { exit bad || NR < 4 }' ||
    fail "the losses of $1 and $2 differ: $(paste <(losses "$1") <(losses "$2") | tail -n 2)"
}

# Starts a long training in the background and waits until it has written its second checkpoint. Sets $parent.
start() { # OUT LOG OPTIONS...
  local out=$1 log=$2 first=
  shift 2
  rm -rf "$out"
  "$heed" train translate --pairs p.tsv "${options[@]}" --steps 1000000 --out "$out" "$@" 2>"$log" &
  parent=$!
  for _ in $(seq 600); do
    local now
    now=$(stat -c %i "$out/checkpoint/checkpoint.safetensors" 2>/dev/null)
    [ -n "$now" ] && [ -z "$first" ] && first=$now
    [ -n "$now" ] && [ "$now" != "$first" ] && return
    sleep 0.05
  done
  fail "no second checkpoint after 30 s" "$log"
}

children_of() { pgrep -P "$1"; }

gone() { # PIDS...: no such process, not even a zombie
  checks=$((checks + 1))
  for _ in $(seq 100); do
    local left=
    for pid in "$@"; do [ -e "/proc/$pid" ] && left="$left $pid"; done
    [ -z "$left" ] && return
    sleep 0.05
  done
  fail "processes that should be gone:$left"
}

# Trains 20 steps more from the checkpoint that is left, on N processes.
goes_on() { # OUT N
  local step
  step=$(strings -n 8 "$1/checkpoint/checkpoint.safetensors" | grep -oE ',.?"steps.?":[0-9]+' | head -n 1 | grep -oE '[0-9]+$')
  [ "${step:-0}" -gt 0 ] || fail "$1: a checkpoint of step '$step'"
  train --steps $((step + 20)) --out "$1" --nproc "$2" 2>again.err || fail "$1 does not go on" again.err
  [ -s "$1/model.safetensors" ] || fail "$1 has no model"
}

done_checking() {
  echo "$checks checks, $failures failures"
  [ $failures = 0 ]
}
