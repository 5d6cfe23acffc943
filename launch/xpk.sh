#!/usr/bin/env bash
# Runs an experiment on a GKE cluster of TPUs, through xpk (https://github.com/AI-Hypercomputer/xpk): this repository is
# laid over a public Python image, installed when a worker starts, and restarted where the last checkpoint is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/cloud.sh
source launch/cloud.sh

usage="usage: bash launch/xpk.sh --cluster=CLUSTER --workload=NAME --zone=ZONE --topology=[N*]KIND:SHAPE
       [--project=PROJECT] [--restarts=N] [--dry-run] -- --config=FILE --workdir=gs://BUCKET/FOLDER
       [--config.FIELD=VALUE ...]

  --topology  as v5e:4x4, or 2*v5p:2x2x4 for two slices: the same as for --mode=plan
  --restarts  after a preemption (default 10)
  --dry-run   prints the command and runs nothing

The cluster shows commands to all who may look at it, so no key goes along: have a gated base in the bucket, and name it
by --config.base.path=gs://...; have corpora written elsewhere (docs/corpora.md), and name them by --config.data.msm=..."

cluster="" workload="" zone="" topology="" project="" restarts=10 dry_run=""
while (($#)); do
  case "$1" in
  --cluster=*) cluster="${1#*=}" ;;
  --workload=*) workload="${1#*=}" ;;
  --zone=*) zone="${1#*=}" ;;
  --topology=*) topology="${1#*=}" ;;
  --project=*) project="${1#*=}" ;;
  --restarts=*) restarts="${1#*=}" ;;
  --dry-run) dry_run=1 ;;
  --help) echo "$usage" && exit ;;
  --) shift && break ;;
  *) stop "$1 is no option of this script; what is for the launcher goes after --, and --help shows the usage" ;;
  esac
  shift
done
[[ -n "$cluster" && -n "$workload" && -n "$zone" ]] || stop "give --cluster, --workload and --zone; --help shows the usage"
[[ "$restarts" =~ ^[0-9]+$ ]] || stop "--restarts=$restarts: give a number"
[[ "$topology" =~ ^(([1-9][0-9]*)\*)?((v5e|v6e):[0-9]+x[0-9]+|v5p:[0-9]+x[0-9]+x[0-9]+)$ ]] ||
  stop "--topology=$topology: give KIND:SHAPE, as v5e:4x4, v5p:2x2x4 or v6e:2x4, or 2*v5e:4x4 for two slices"
slices="${BASH_REMATCH[2]:-1}" kind="${BASH_REMATCH[3]%%:*}" shape="${BASH_REMATCH[3]#*:}"
chips=$((${shape//x/*}))
case "$kind" in
v5e) type="v5litepod-$chips" ;;
v5p) type="v5p-$((2 * chips))" ;; # of this kind, cores are counted
v6e) type="v6e-$chips" ;;
esac
check_launcher_arguments "$@"
name_keys_left_here
# A packed copy: .venv, .git and runs/ have no place in an image.
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
pack_repository "$scratch/msm_jax.tar.gz"
mkdir "$scratch/msm_jax"
run tar -xzf "$scratch/msm_jax.tar.gz" -C "$scratch/msm_jax"

run xpk workload create --cluster="$cluster" --workload="$workload" --zone="$zone" ${project:+--project="$project"} \
  --tpu-type="$type" --num-slices="$slices" --max-restarts="$restarts" --base-docker-image=python:3.11 \
  --script-dir="$scratch/msm_jax" \
  --command="MSM_JAX_EXTRAS= bash -c 'set -e; source launch/environment.sh; make_environment tpu,gcs' && \
exec .venv/bin/python -m msm_jax.launch $(printf '%q ' "$@")"
