#!/usr/bin/env bash
# heed train --rendezvous from outside: processes that meet, that do not fit together, that die.
#   tests/rendezvous_test.sh build/heed
# shellcheck source=tests/several.sh
source "$(dirname "${BASH_SOURCE[0]}")/several.sh"

train --steps 40 --out one 2>one.err || fail "one process" one.err

port=$((20000 + RANDOM % 12000))
meet=(--rendezvous "tcp://127.0.0.1:$port")
pair() { # CODE "OPTIONS OF RANK 0" "OF RANK 1": runs both; 0.err and 1.err are what they say
  # shellcheck disable=SC2086  # the options are words
  train "${meet[@]}" --world 2 --rank 0 $2 2>0.err &
  local zero=$!
  # shellcheck disable=SC2086
  train "${meet[@]}" --world 2 --rank 1 $3 2>1.err &
  ends $! "$1" 40 1.err
  ends $zero "$1" 40 0.err
}

pair 0 "--steps 40 --out met" "--steps 40 --out elsewhere"
same_losses one met
says 1.err "^rank 1: training with tcp://127.0.0.1:$port, where rank 0 shows the progress$"
says 1.err '^rank 1: done; rank 0 has the model$'
[ ! -e elsewhere ] || fail "rank 1 wrote a folder"

pair 1 "--steps 40 --out other" "--steps 40 --out other --lr 4e-3"
says 1.err '^heed: learning_rate is 0.004 in rank 1 and 0.001 in rank 0; start all processes with the same options and data$'
says 0.err '^heed: rank 1 of 2 ended: learning_rate is 0.004'
pair 1 "--steps 40 --out other" "--steps 40 --out other --pairs fewer.tsv"
says 1.err '^heed: pairs is "799 \(checksum [0-9a-f]+\)" in rank 1 and "400 \(checksum'
pair 1 "--steps 40 --out other" "--steps 30 --out other"
says 1.err '^heed: steps is 30 in rank 1 and 40 in rank 0'

# Another number of processes, and another that takes the same rank: they are told, and the others are not disturbed.
train "${meet[@]}" --world 2 --rank 0 --steps 40 --out met3 2>0.err &
zero=$!
train "${meet[@]}" --world 3 --rank 1 --steps 40 --out met3 2>other.err
says other.err '^heed: the number of processes is 3 in rank 1 and 2 in rank 0'
train "${meet[@]}" --world 2 --rank 0 --steps 40 --out met3 2>other.err
says other.err "^heed: port $port of 127.0.0.1 is in use by another program; take another port$"
train "${meet[@]}" --world 2 --rank 1 --steps 40 --out met3 2>1.err
ends $zero 0 40 0.err
same_losses one met3

train "${meet[@]}" --world 2 --rank 0 --timeout 1 --steps 40 --out alone 2>0.err
says 0.err "^heed: rank 1 of 2 did not come to 127.0.0.1:$port within 1 s"
train "${meet[@]}" --world 2 --rank 1 --timeout 1 --steps 40 --out alone 2>1.err
says 1.err "^heed: nobody answers at 127.0.0.1:$port within 1 s \(Connection refused\)"
train --rendezvous tcp://192.0.2.1:29500 --world 2 --rank 0 --timeout 1 --steps 40 --out alone 2>0.err
says 0.err '^heed: 192.0.2.1 is not an address of this machine'

# One of them dies.
for victim in 0 1; do
  train "${meet[@]}" --world 2 --rank 1 --steps 1000000 --out died 2>1.err &
  one=$!
  start died 0.err "${meet[@]}" --world 2 --rank 0
  if [ $victim = 1 ]; then
    kill -9 -$one
    ends $one 137 5 1.err
    ends "$parent" 1 10 0.err
    says 0.err '^heed: rank 1 of 2 no longer answers from 127.0.0.1 .*; the checkpoint of step [0-9]+ in died/checkpoint is whole'
  else
    kill -9 "$parent"
    ends "$parent" 137 5 0.err
    ends $one 1 10 1.err
    says 1.err "^heed: rank 0 of 2 at 127.0.0.1:$port is gone"
  fi
  goes_on died 2
done

# ---- Options that do not fit together: nothing is started, exit code 2 ----

refused() { # PATTERN OPTIONS...
  local pattern=$1
  shift
  train --steps 40 --out refused "$@" 2>refused.err
  [ $? = 2 ] || fail "$*: not exit code 2" refused.err
  says refused.err "$pattern"
  [ ! -e refused ] || fail "$*: made a folder"
}
refused '--rendezvous needs --world .* and --rank' "${meet[@]}"
refused '--rendezvous needs --world .* and --rank' "${meet[@]}" --rank 0
refused '--rank is 2 and --world is 2; ranks go from 0 to 1' "${meet[@]}" --rank 2 --world 2
refused '--nproc starts processes on this machine alone' "${meet[@]}" --rank 0 --world 2 --nproc 2
refused '--world and --rank are for --rendezvous' --world 2
refused '--rendezvous 10.0.0.1:29500 is not of the form tcp://HOST:PORT' --rendezvous 10.0.0.1:29500 --rank 0 --world 2
refused 'can be read only once' --nproc 2 --pairs <(cat p.tsv)

done_checking
