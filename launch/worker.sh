#!/usr/bin/env bash
# Runs on each worker of a slice, where tpu_vm.sh calls it: bash launch/worker.sh ID [what the launcher takes].
# Starts the launcher apart from the connection, which may end before it, follows its log and ends with its exit status.
# A launcher that runs already is followed, and an ID starts one once: gcloud repeats what a lost connection cut.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/cloud.sh
source launch/cloud.sh

id="$1"
shift
folder=../msm_jax_run
arguments="$(printf '%q ' "$@")"
shown=20 # the last lines of what was shown before
mkdir -p "$folder"
if kill -0 "$(cat "$folder/pid" 2>/dev/null)" 2>/dev/null; then
  running="$(cat "$folder/arguments")"
  [[ "$running" == "$arguments" ]] || stop "another run goes on here, $running; --stop ends it"
  echo "The run goes on here; following it."
elif [[ "$(cat "$folder/id" 2>/dev/null)" != "$id" ]]; then
  rm -f "$folder/status"
  : >"$folder/log"
  echo "$arguments" >"$folder/arguments"
  # The trap lets the inner shell outlive the SIGTERM of --stop, which goes to the launcher too, and write the status.
  # shellcheck disable=SC2016
  setsid bash -c 'trap : TERM; set -a; . ../msm_jax.env; set +a
    PYTHONUNBUFFERED=1 .venv/bin/python -m msm_jax.launch "$@"; echo $? >../msm_jax_run/status' \
    msm_jax "$@" </dev/null >>"$folder/log" 2>&1 &
  echo $! >"$folder/pid"
  echo "$id" >"$folder/id"
  shown=+1
fi
tail -n "$shown" -f --pid="$(cat "$folder/pid")" "$folder/log"
exit "$(cat "$folder/status" 2>/dev/null || echo 1)" # no status: it was killed
