# shellcheck shell=bash
# Sourced by the scripts beside it that run an experiment on other machines.

stop() {
  echo "error: $1" >&2
  exit 2
}

# Runs a command, or with --dry-run prints it.
run() {
  if [[ -n "${dry_run:-}" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Sets `config` and `workdir` from what goes to the launcher, and checks that the configuration is here.
read_launcher_arguments() {
  local argument
  config="" workdir=""
  for argument in "$@"; do
    case "$argument" in
    --config=*) config="${argument#*=}" ;;
    --workdir=*) workdir="${argument#*=}" ;;
    esac
  done
  [[ -n "$config" ]] || stop "give --config=FILE after --; --help shows the usage"
  [[ -f "${config%%:*}" ]] || stop "--config=$config: no such file here"
}

# The same for workers whose disks are their own.
check_launcher_arguments() {
  local config workdir
  read_launcher_arguments "$@"
  [[ "$workdir" == gs://* ]] || stop "give --workdir=gs://BUCKET/FOLDER after --: a worker's own disk goes with it"
}

# Prints the command that installs what was copied. The images have an older Python.
install_command() {
  echo "set -e; mkdir -p msm_jax; tar -xzf msm_jax.tar.gz -C msm_jax; cd msm_jax; command -v python3.11 >/dev/null ||" \
    "{ sudo apt-get update -qq; sudo apt-get install -qq -y python3.11-venv; }; PYTHON=python3.11 bash -c" \
    "'set -e; source launch/environment.sh; make_environment tpu,gcs'"
}

# Prints the command that runs the launcher with these arguments.
run_command() {
  echo "cd msm_jax && set -a && . ../msm_jax.env && set +a &&" \
    "exec .venv/bin/python -m msm_jax.launch $(printf '%q ' "$@")"
}

# Packs the files that git knows, as they are here, and the keys that the launcher reads from the environment, which no
# command line should show: $1 is the folder of msm_jax.tar.gz and msm_jax.env.
pack_repository() {
  local variable
  (umask 077 && touch "$1/msm_jax.env")
  for variable in HF_TOKEN HF_ENDPOINT GEMINI_API_KEY; do
    [[ -z "${!variable:-}" ]] || printf '%s=%q\n' "$variable" "${!variable}" >>"$1/msm_jax.env"
  done
  git ls-files >"$1/files"
  run tar --files-from="$1/files" -czf "$1/msm_jax.tar.gz"
}
