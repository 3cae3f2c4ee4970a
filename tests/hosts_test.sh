#!/usr/bin/env bash
# Training on two hosts: two network namespaces joined by a cable. Needs root and iproute2; skips (77) without.
#   tests/hosts_test.sh build/heed
# In a mount namespace of its own: what `ip netns` mounts under /run/netns goes with it, however the test ends.
if [ -z "${HEED_OWN_MOUNTS:-}" ]; then
  unshare --mount true 2>/dev/null || { echo "skipped: no mount namespaces here"; exit 77; }
  HEED_OWN_MOUNTS=1 exec unshare --mount bash "${BASH_SOURCE[0]}" "$@"
fi
# shellcheck source=tests/several.sh
source "$(dirname "${BASH_SOURCE[0]}")/several.sh"

a=heed-a-$$ b=heed-b-$$
remove() {
  ip netns del $a 2>/dev/null
  ip netns del $b 2>/dev/null
}
trap 'kill -9 $(jobs -p) 2>/dev/null; remove; rm -rf "$folder"' EXIT
connect() {
  ip netns add $a && ip netns add $b && ip -n $a link add cable type veth peer name cable netns $b &&
    ip -n $a addr add 10.77.0.1/24 dev cable && ip -n $b addr add 10.77.0.2/24 dev cable &&
    ip -n $a link set cable up && ip -n $b link set cable up && ip -n $a link set lo up && ip -n $b link set lo up
}
if ! connect 2>connect.err; then
  echo "skipped: no network namespaces here ($(head -n 1 connect.err))"
  exit 77
fi

meet=(--rendezvous tcp://10.77.0.1:29500 --world 2)
both() { # OUT OPTIONS...: a training on both hosts, in the background. Sets $zero and $one.
  ip netns exec $a "$heed" train translate --pairs p.tsv "${options[@]}" "${meet[@]}" --rank 0 --out "$@" 2>0.err &
  zero=$!
  ip netns exec $b "$heed" train translate --pairs p.tsv "${options[@]}" "${meet[@]}" --rank 1 --out "$@" 2>1.err &
  one=$!
}

# The machine's own name leads to none of the two: only the cable's addresses work.
train --steps 40 --out one 2>one.err || fail "one process" one.err
both two --steps 40
ends $zero 0 40 0.err
ends $one 0 10 1.err
same_losses one two

# A device that the other cannot reach, as behind a firewall, and one that is not there.
GLOO_SOCKET_IFNAME=lo both lost --steps 40 --timeout 5
ends $zero 1 30 0.err
ends $one 1 30 1.err
says 0.err '^heed: the processes have met at 10.77.0.1:29500, but .* cannot connect .* must let all ports through$'
GLOO_SOCKET_IFNAME=none both lost --steps 40 --timeout 5
ends $zero 1 30 0.err
ends $one 1 30 1.err
says 1.err '^heed: (rank 0 of 2 ended: )?GLOO_SOCKET_IFNAME is none, and none cannot be used'
GLOO_SOCKET_IFNAME=cable both named --steps 40
ends $zero 0 40 0.err
ends $one 0 10 1.err
same_losses one named

# The cable is cut: nothing comes any more, not even the end of a connection.
both cut --steps 1000000 --timeout 3 # in training ten times as long
for _ in $(seq 400); do
  grep -q '^step 20 ' 0.err && break
  sleep 0.05
done
ip -n $a link set cable down
ends $zero 1 60 0.err
ends $one 1 30 1.err
says 0.err '^heed: rank 1 of 2 no longer answers from 10.77.0.2 .*; the checkpoint of step [0-9]+ in cut/checkpoint is whole'
says 1.err '^heed: rank 0 of 2 .*(no longer answers|is gone)'
ip -n $a link set cable up
goes_on cut 1

done_checking
