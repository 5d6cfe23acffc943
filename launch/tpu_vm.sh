#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU slice, from this machine: makes the slice if it is not there, copies this repository,
# installs it on all workers, starts the launcher on all of them and follows its output. After a preemption it makes the
# slice anew and goes on where the last checkpoint is, so the workdir must be on gs://.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/cloud.sh
source launch/cloud.sh

usage="usage: bash launch/tpu_vm.sh --name=NAME --zone=ZONE --topology=KIND:SHAPE [--project=PROJECT] [--spot] [--queued]
       [--delete] [--dry-run] -- --config=FILE --workdir=gs://BUCKET/FOLDER [--config.FIELD=VALUE ...]

  --topology  as v5e:4x4, v5p:2x2x4, v6e:2x4: the same as for --mode=plan
  --spot      cheaper, and may be taken away at any moment
  --queued    waits in the queue for a slice (a queued resource of the same name), where none is free at once
  --delete    deletes the slice and its place in the queue; nothing after -- is needed
  --dry-run   prints the commands and runs none

example:
  bash launch/tpu_vm.sh --name=msm --zone=us-central2-b --topology=v5p:2x2x4 --queued -- \\
    --config=configs/qwen32b_am.py --workdir=gs://my-bucket/qwen32b_am"

name="" zone="" topology="" project="" spot="" queued="" delete="" dry_run=""
while (($#)); do
  case "$1" in
  --name=*) name="${1#*=}" ;;
  --zone=*) zone="${1#*=}" ;;
  --topology=*) topology="${1#*=}" ;;
  --project=*) project="${1#*=}" ;;
  --spot) spot=1 ;;
  --queued) queued=1 ;;
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

if [[ -n "$delete" ]]; then
  run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet || true
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --quiet --force || true
  exit
fi
kind="${topology%%:*}" shape="${topology#*:}"
case "$kind" in
v5e) type=v5litepod runtime=v2-alpha-tpuv5-lite ;;
v5p) type=v5p runtime=v2-alpha-tpuv5 ;;
v6e) type=v6e runtime=v2-alpha-tpuv6e ;;
*) stop "--topology=$topology: give KIND:SHAPE, as v5e:4x4, v5p:2x2x4 or v6e:2x4" ;;
esac
[[ "$shape" =~ ^[0-9]+(x[0-9]+)+$ ]] || stop "--topology=$topology: give KIND:SHAPE, as v5e:4x4, v5p:2x2x4 or v6e:2x4"
check_launcher_arguments "$@"
launcher=("$@")
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

state() {
  gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format='value(state)' 2>/dev/null || true
}

make_slice() {
  local what=(--type="$type" --topology="$shape" ${spot:+--spot})
  if [[ -z "$queued" ]]; then
    run gcloud compute tpus tpu-vm create "$name" "${place[@]}" "${what[@]}" --version="$runtime"
    return
  fi
  run gcloud compute tpus queued-resources create "$name" "${place[@]}" "${what[@]}" --runtime-version="$runtime" \
    --node-id="$name"
  echo "Waiting in the queue for $topology; stop this script at any moment, and start it again."
  [[ -n "$dry_run" ]] && return
  until [[ "$(state)" == READY ]]; do
    case "$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)')" in
    FAILED | SUSPENDED) stop "the queue refused; see gcloud compute tpus queued-resources describe $name ${place[*]}" ;;
    esac
    sleep 30
  done
}

delete_slice() {
  run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet || true
  [[ -z "$queued" ]] || run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --quiet --force || true
}

on_all_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all --command="$1"
}

run_once() {
  pack_repository "$scratch"
  run gcloud compute tpus tpu-vm scp "$scratch/msm_jax.tar.gz" "$scratch/msm_jax.env" "$name:" "${place[@]}" --worker=all
  on_all_workers "$(install_command)"
  on_all_workers "$(run_command "${launcher[@]}")"
}

if [[ -n "$dry_run" ]]; then
  make_slice
  run_once
  exit
fi
while true; do
  case "$(state)" in
  READY) echo "$name is there." ;;
  "") make_slice ;;
  *) delete_slice && make_slice ;; # preempted, stopped or broken
  esac
  if run_once; then
    exit 0
  fi
  [[ "$(state)" != READY ]] || stop "the run ended with an error on $name, which is still there: its last lines are above"
  echo "The slice was taken away; making it anew."
done
