#!/usr/bin/env bash
# heed train --nproc from outside: the curve of one process, kills, Ctrl-C.
#   tests/nproc_test.sh build/heed
# shellcheck source=tests/several.sh
source "$(dirname "${BASH_SOURCE[0]}")/several.sh"

# ---- The same curve, and no more words than one process says ----

train --steps 40 --out one 2>one.err || fail "one process" one.err
train --steps 40 --out two --nproc 2 2>two.err || fail "two processes" two.err
same_losses one two
checks=$((checks + 1))
[ "$(wc -l <two.err)" = "$(wc -l <one.err)" ] || fail "two processes say more than one" two.err

# ---- kill -9 of a worker, of the parent ----

start killed killed.err --nproc 3
mapfile -t workers < <(children_of "$parent")
[ "${#workers[@]}" = 2 ] || fail "${#workers[@]} workers, not 2"
kill -9 "${workers[1]}"
ends "$parent" 1 10 killed.err
says killed.err "^heed: rank [12] of 3 \(process ${workers[1]}\) was killed by signal 9 \(Killed\); the checkpoint of step [0-9]+ in killed/checkpoint is whole, and the same command goes on from it$"
[ "$(grep -c ^heed: killed.err)" = 1 ] || fail "more than one message" killed.err
gone "${workers[@]}"
goes_on killed 3

start orphans orphans.err --nproc 3
mapfile -t workers < <(children_of "$parent")
kill -9 "$parent"
ends "$parent" 137 5 orphans.err
gone "${workers[@]}"
goes_on orphans 1

# ---- Another training in the same folder; Ctrl-C: of the terminal, to all; a signal to one worker alone ----

start stopped stopped.err --nproc 2
mapfile -t workers < <(children_of "$parent")
checks=$((checks + 2))
for pid in "$parent" "${workers[@]}"; do
  name=$(cat "/proc/$pid/comm")
  [ "$name" = heed ] || fail "process $pid is called $name"
done
train --steps 20 --out stopped 2>second.err && fail "two trainings in one folder" second.err
says second.err '^heed: another training is at work in stopped; wait for its end, or name another folder$'
kill -INT -"$parent"
ends "$parent" 130 10 stopped.err
says stopped.err '^Interrupted after [0-9,]+ steps; the same command goes on from the checkpoint in stopped\.$'
gone "${workers[@]}"
goes_on stopped 2

start one_stopped one_stopped.err --nproc 2
mapfile -t workers < <(children_of "$parent")
kill -TERM "${workers[0]}"
ends "$parent" 130 10 one_stopped.err
gone "${workers[@]}"

done_checking
