#!/usr/bin/env bash
# Two machines in one: namespaces of the network, processes and host name, joined by a cable. Both run the same command.
#
#   unshare --map-root-user --net --pid --fork --kill-child --mount-proc bash tests/sweeps/cluster/two_machines.sh FOLDER COMMAND...
#
# alpha is 10.77.0.1, beta 10.77.0.2. Prints the exit codes of both. FOLDER: where each keeps Ray's files and its output.
set -euo pipefail
folder=$1
shift

machine() {  # NAME COMMAND...
  mkdir -p "$folder/$1"
  RAY_TMPDIR="$folder/$1" unshare --net --uts --pid --fork --kill-child --mount-proc bash -c '
    hostname "$0"
    until [[ -e "$RAY_TMPDIR/../cabled" ]]; do sleep 0.1; done
    exec "$@"' "$@" > "$folder/$1.log" 2>&1
}

inside() {  # the first process of a machine, seen from here
  local child=""
  until [[ -n "$child" ]]; do
    child=$(cat "/proc/$1/task/$1/children" 2>/dev/null || true)
    [[ -z "$child" ]] || child=$(cat "/proc/${child%% *}/task/${child%% *}/children" 2>/dev/null || true)
    sleep 0.1
  done
  echo "${child%% *}"
}

machine alpha "$@" & first=$!
machine beta "$@" & second=$!
alpha=$(inside "$first")
beta=$(inside "$second")
ip link add cable netns "$alpha" type veth peer name cable netns "$beta"
address=1
for process in "$alpha" "$beta"; do
  nsenter --target "$process" --net bash -c "
    ip link set lo up && ip address add 10.77.0.$address/24 dev cable && ip link set cable up"
  address=$((address + 1))
done
touch "$folder/cabled"
codes=()
for process in "$first" "$second"; do
  code=0
  wait "$process" || code=$?
  codes+=("$code")
done
echo "${codes[@]}"
