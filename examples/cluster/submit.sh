#!/usr/bin/env bash
# A sweep as a job of a running Ray cluster, from the root of this repository (it is sent along, without .git):
#
#   DASHBOARD=http://head:8265 OUTPUT=/shared/results/fig1 bash examples/cluster/submit.sh fig1.toml
#
# Where the machines have this package already: ENVIRONMENT= (empty). The terminal may be closed; `ray job logs` shows how
# far it is, `ray job stop` ends it cleanly, and the same line goes on. `ray[default]` has the command.
set -euo pipefail
: "${DASHBOARD:?the address of the dashboard}" "${OUTPUT:?a results folder that all machines of the cluster see}"
sweep=${1:?a sweep file, below the working directory}
shift
environment=${ENVIRONMENT-examples/cluster/runtime_env.yaml}
with=(--runtime-env "$environment")
if [[ -z $environment ]]; then with=(--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}'); fi
exec ray job submit --no-wait --address "$DASHBOARD" --working-dir . "${with[@]}" -- \
  python -m sweeps.cli.main run "$sweep" --address auto --set "output=$OUTPUT" "$@"
