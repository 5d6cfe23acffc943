#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU slice, from this machine: makes the slice if it is not there, copies this repository,
# installs it on all workers, starts the launcher on all of them and follows its output. After a preemption it makes the
# slice anew and goes on where the last checkpoint is, so the workdir must be on gs://.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/cloud.sh
source launch/cloud.sh

usage="usage: bash launch/tpu_vm.sh --name=NAME --zone=ZONE --topology=KIND:SHAPE [--project=PROJECT] [--spot] [--queued]
       [--stop] [--delete] [--dry-run] -- --config=FILE --workdir=gs://BUCKET/FOLDER [--config.FIELD=VALUE ...]

  --topology  as v5e:4x4, v5p:2x2x4, v6e:2x4: the same as for --mode=plan
  --spot      cheaper, and may be taken away at any moment
  --queued    waits in the queue for a slice (a queued resource of the same name), where none is free at once
  --stop      makes the run save its state and end; the slice stays, and nothing after -- is needed
  --delete    deletes the slice and its place in the queue; nothing after -- is needed
  --dry-run   prints the commands and runs none

example:
  bash launch/tpu_vm.sh --name=msm --zone=us-east5-a --topology=v5p:2x2x4 --queued -- \\
    --config=configs/qwen32b_am.py --workdir=gs://my-bucket/qwen32b_am"

name="" zone="" topology="" project="" spot="" queued="" end="" delete="" dry_run=""
while (($#)); do
  case "$1" in
  --name=*) name="${1#*=}" ;;
  --zone=*) zone="${1#*=}" ;;
  --topology=*) topology="${1#*=}" ;;
  --project=*) project="${1#*=}" ;;
  --spot) spot=1 ;;
  --queued) queued=1 ;;
  --stop) end=1 ;;
  --delete) delete=1 ;;
  --dry-run) dry_run=1 ;;
  --help) echo "$usage" && exit ;;
  --) shift && break ;;
  *) stop "$1 is no option of this script; what is for the launcher goes after --, and --help shows the usage" ;;
  esac
  shift
done
[[ -n "$name" && -n "$zone" ]] || stop "give --name and --zone; --help shows the usage"
place=(--zone="$zone" ${project:+--project="$project"})

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# Sets `state` to that of the slice (look tpu-vm state) or of its place in the queue (look queued-resources
# state.state), empty if there is none. Any other error of gcloud ends the script: what it cannot see may be there.
look() {
  state=""
  [[ -z "$dry_run" ]] || return 0
  # --quiet: a question of gcloud would go to the file too.
  if ! state="$(gcloud compute tpus "$1" describe "$name" "${place[@]}" --format="value($2)" --quiet \
    2>"$scratch/error")"; then
    # Named, since a project or zone may not be found either.
    if ! grep -qiE "not.found.*/$name([^a-z0-9-]|\$)" "$scratch/error"; then
      cat "$scratch/error" >&2
      stop "gcloud cannot tell whether $name is there; mend what it says above, and start this script again"
    fi
    state=""
  fi
}

delete_queued() {
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --quiet --force # with its slice
}

delete_node() {
  run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
}

on_all_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all --command="$1"
}

if [[ -n "$end" ]]; then
  # shellcheck disable=SC2016
  on_all_workers 'kill -- "-$(cat msm_jax_run/pid)"'
  exit
elif [[ -n "$delete" ]]; then
  look queued-resources state.state
  [[ -z "$dry_run$state" ]] || delete_queued
  look tpu-vm state
  [[ -z "$dry_run$state" ]] || delete_node
  exit
fi
kind="${topology%%:*}" shape="${topology#*:}"
case "$kind" in
v5e) type=v5litepod runtime=v2-alpha-tpuv5-lite ;;
v5p) type=v5p runtime=v2-alpha-tpuv5 ;;
v6e) type=v6e runtime=v2-alpha-tpuv6e ;;
*) stop "--topology=$topology: give KIND:SHAPE, as v5e:4x4, v5p:2x2x4 or v6e:2x4" ;;
esac
[[ "$topology" =~ ^((v5e|v6e):[0-9]+x[0-9]+|v5p:[0-9]+x[0-9]+x[0-9]+)$ ]] ||
  stop "--topology=$topology: give KIND:SHAPE, as v5e:4x4, v5p:2x2x4 or v6e:2x4"
check_launcher_arguments "$@"
launcher=("$@")

waited=""
wait_while() { # $1 says why
  [[ "$waited" == "$1" ]] || echo "Waiting: $1. Stop this script at any moment, and start it again."
  waited="$1"
  sleep "${MSM_JAX_POLL_SECONDS:-30}"
}

# To make a slice of a given shape takes gcloud alpha: without it, gcloud has --type for v2, v3 and v4 only.
made=""
make_slice() {
  local what=(--type="$type" --topology="$shape" ${spot:+--spot})
  if [[ -z "$queued" ]]; then
    run gcloud alpha compute tpus tpu-vm create "$name" "${place[@]}" "${what[@]}" --version="$runtime"
    return
  fi
  look queued-resources state.state
  case "$state" in
  "")
    run gcloud alpha compute tpus queued-resources create "$name" "${place[@]}" "${what[@]}" \
      --runtime-version="$runtime" --node-id="$name"
    made=1
    ;;
  FAILED | SUSPENDED) # an earlier start's, or preempted
    if [[ "$state" == FAILED && -n "$made" ]]; then
      stop "the queue refused; see gcloud compute tpus queued-resources describe $name ${place[*]}"
    fi
    delete_queued
    ;;
  *) wait_while "$topology is $state in the queue" ;;
  esac
}

delete_slice() {
  state=""
  [[ -z "$queued" ]] || look queued-resources state.state
  case "$state" in
  "") delete_node ;;
  SUSPENDING | DELETING) wait_while "$name is $state in the queue" ;;
  *) delete_queued ;;
  esac
}

# Bash does not end at the first error of what stands in a condition, as this does.
run_once() {
  pack_repository "$scratch/msm_jax.tar.gz" &&
    write_keys "$scratch/msm_jax.env" &&
    run gcloud compute tpus tpu-vm scp "$scratch/msm_jax.tar.gz" "$scratch/msm_jax.env" "$name:" "${place[@]}" \
      --worker=all &&
    on_all_workers "$(install_command)" &&
    on_all_workers "bash msm_jax/launch/worker.sh $(date +%s)-$$ $(printf '%q ' "${launcher[@]}")"
}

if [[ -n "$dry_run" ]]; then
  make_slice
  run_once
  exit
fi
while true; do
  look tpu-vm state
  case "$state" in
  READY)
    echo "$name is there."
    if run_once; then
      exit 0
    fi
    sleep "${MSM_JAX_POLL_SECONDS:-30}" # a slice that is taken away may say so a moment later
    look tpu-vm state
    [[ "$state" != READY ]] ||
      stop "the run or the connection ended with an error, shown above; $name is there, and the same command goes on"
    echo "The slice was taken away; making it anew."
    ;;
  "") make_slice ;;
  PREEMPTED | TERMINATED | STOPPED) delete_slice ;;
  *) wait_while "$name is $state" ;;
  esac
done
