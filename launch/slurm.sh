#!/usr/bin/env bash
# Runs an experiment on GPUs under Slurm: one process for each GPU, which find each other by themselves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/cloud.sh
source launch/cloud.sh

usage="usage: bash launch/slurm.sh --nodes=N --gpus=G [--partition=P] [--time=HH:MM:SS] [--dry-run] -- --config=FILE
       --workdir=DIR [--config.FIELD=VALUE ...]

  --gpus     of each node
  --dry-run  prints the job and submits nothing

The workdir must be on a file system that all nodes see. A job that reaches its time
limit is queued again, and goes on where it was; scancel ends it."

nodes="" gpus="" partition="" time="" dry_run=""
while (($#)); do
  case "$1" in
  --nodes=*) nodes="${1#*=}" ;;
  --gpus=*) gpus="${1#*=}" ;;
  --partition=*) partition="${1#*=}" ;;
  --time=*) time="${1#*=}" ;;
  --dry-run) dry_run=1 ;;
  --help) echo "$usage" && exit ;;
  --) shift && break ;;
  *) stop "$1 is no option of this script; what is for the launcher goes after --, and --help shows the usage" ;;
  esac
  shift
done
[[ "$nodes" =~ ^[1-9][0-9]*$ && "$gpus" =~ ^[1-9][0-9]*$ ]] || stop "give --nodes=N and --gpus=G; --help shows the usage"
config="" workdir=""
read_launcher_arguments "$@"
[[ -n "$workdir" ]] || stop "give --workdir=DIR after --, on a file system that all nodes see"

job="#!/usr/bin/env bash
#SBATCH --job-name=msm_jax
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
${partition:+#SBATCH --partition=$partition
}${time:+#SBATCH --time=$time
}#SBATCH --requeue
# Two minutes before the end all processes save and stop.
#SBATCH --signal=TERM@120
set -euo pipefail
cd $(printf '%q' "$PWD")
status=0
srun .venv/bin/python -m msm_jax.launch $(printf '%q ' "$@") || status=\$?
# 143: stopped by that signal. scancel ends this shell too.
[[ \$status != 143 ]] || scontrol requeue \"\$SLURM_JOB_ID\"
exit \$status"

if [[ -n "$dry_run" ]]; then
  echo "$job"
  exit
fi
[[ -x .venv/bin/python ]] || stop "no .venv here; MSM_JAX_EXTRAS=cuda13 bash launch/local.sh --help makes it"
sbatch --export=ALL <<<"$job" # with the keys that are set here
