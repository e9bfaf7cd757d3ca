#!/usr/bin/env bash
# A sweep on a few machines without a scheduler. Run the same line on each of them; the first one drives.
#
#   HEAD=192.168.0.10 NODES=2 OUTPUT=/shared/results/fig1 bash examples/cluster/machines.sh fig1.toml
#
#   HEAD     address of the machine that drives, as the others reach it
#   NODES    how many machines take part; the sweep starts when all are there
#   OUTPUT   results folder, on a file system that all of them mount at the same path
#   PORT     of Ray's head, 6379 by default
#
# Ended by Ctrl-C, or by `kill` and this script's process id: run the same line again; finished trials are kept. Killed
# harder, or a machine lost: `ray stop` on each machine first, since Ray's command refuses to start beside another Ray.
# It stops every Ray of yours on these machines at its end.
set -euo pipefail
: "${HEAD:?the address of the machine that drives}" "${NODES:?how many machines}" "${OUTPUT:?a shared results folder}"
sweep=${1:?a sweep file}
shift
port=${PORT:-6379}
export RAY_USAGE_STATS_ENABLED=0
# Ray gives up after half a minute without the others, which is soon for lines typed by hand.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-600}
# Whoever reaches a Ray cluster may run code on it. A token (ray get-auth-token --generate, copied to every machine's
# ~/.ray/auth_token) keeps others out; without one, keep the ports behind a firewall.
if [[ -f ~/.ray/auth_token || -n "${RAY_AUTH_TOKEN:-}" ]]; then export RAY_AUTH_MODE=token; fi
# A signal that ends Ray's command leaves its daemons; so it has a session of its own, and what it runs is told.
trap 'told=1; pkill -TERM -P "$!" || kill "$!" || true' INT TERM HUP
told="" stop="" code=0
setsid ray symmetric-run --address "$HEAD:$port" --min-nodes "$NODES" -- \
  sweeps run "$sweep" --address "$HEAD:$port" --set "output=$OUTPUT" "$@" &
wait "$!" || code=$?
while [[ -n $told ]]; do   # a signal ended the wait, not what is waited for
  told="" stop=1 code=0
  wait "$!" || code=$?
done
[[ -z $stop ]] || ray stop
exit "$code"
