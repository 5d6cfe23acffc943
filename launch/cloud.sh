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

# Sets `config`, `workdir` and `store` from what goes to the launcher, and checks that the configuration is here.
read_launcher_arguments() {
  local argument
  config="" workdir="" store=""
  for argument in "$@"; do
    case "$argument" in
    --config=*) config="${argument#*=}" ;;
    --workdir=*) workdir="${argument#*=}" ;;
    --store=*) store="${argument#*=}" ;;
    esac
  done
  [[ -n "$config" ]] || stop "give --config=FILE after --; --help shows the usage"
  [[ -f "${config%%:*}" ]] || stop "--config=$config: no such file here"
}

# The same for workers whose disks are their own.
check_launcher_arguments() {
  local config workdir store
  read_launcher_arguments "$@"
  [[ "$workdir" == gs://* ]] || stop "give --workdir=gs://BUCKET/FOLDER after --: a worker's own disk goes with it"
  [[ -z "$store" || "$store" == gs://* ]] || stop "--store=$store: give gs://BUCKET/FOLDER, which all workers see"
  [[ -n "$(git ls-files -co --exclude-standard -- "${config%%:*}" 2>/dev/null)" ]] ||
    stop "--config=$config does not reach the workers; have it in the repository, where git does not ignore it"
}

# Prints the command that installs what was copied, unless a run goes on there. The images have an older Python.
install_command() {
  # shellcheck disable=SC2016
  echo 'set -e; ! kill -0 "$(cat msm_jax_run/pid 2>/dev/null)" 2>/dev/null || exit 0;' \
    "mkdir -p msm_jax; tar -xzf msm_jax.tar.gz -C msm_jax; cd msm_jax; command -v python3.11 >/dev/null ||" \
    "{ sudo apt-get update -qq; sudo apt-get install -qq -y python3.11-venv; }; PYTHON=python3.11 bash -c" \
    "'set -e; source launch/environment.sh; make_environment tpu,gcs'"
}

# Packs what git does not ignore, as it is here, and data/, where corpora lie, whether ignored or not. $1: the archive.
pack_repository() {
  local file
  {
    git ls-files -coz --exclude-standard &&
      if [[ -d data ]]; then find -L data -type f -print0; fi
  } >"$1.listed" || return
  # Git also lists what was deleted. Links are followed: what they point to is not on a worker.
  while IFS= read -r -d '' file; do
    if [[ -L "$file" && -d "$file" ]]; then
      find -L "$file" -type f ! -path '*/__pycache__/*' -print0
    elif [[ -e "$file" ]]; then
      printf '%s\0' "$file"
    fi
  done <"$1.listed" | sort -zu >"$1.files"
  run tar --null --no-recursion --dereference --files-from="$1.files" -czf "$1"
}

# What msm_jax and its libraries read from the environment: keys of models, of those who write corpora, and where to ask.
keys=(HF_TOKEN HUGGING_FACE_HUB_TOKEN HF_ENDPOINT GEMINI_API_KEY GOOGLE_API_KEY LOCAL_API_KEY)

# Writes these to the file $1, since no command line should show them.
write_keys() {
  local variable
  (umask 077 && : >"$1")
  for variable in "${keys[@]}"; do
    [[ -z "${!variable:-}" ]] || printf '%s=%q\n' "$variable" "${!variable}" >>"$1"
  done
  name_keys_left_here "${keys[@]}"
}

# Names the keys that are set here, but for those named, and that the workers will not have; never what they are.
name_keys_left_here() {
  local variable text left=()
  for variable in $(compgen -e); do
    [[ "$variable" =~ _API_KEY$|_API_TOKEN$|^GOOGLE_APPLICATION_CREDENTIALS$ || " ${keys[*]} " == *" $variable "* ]] &&
      [[ -n "${!variable}" && " $* " != *" $variable "* ]] && left+=("$variable")
  done
  [[ -n "${HF_TOKEN:-}${HUGGING_FACE_HUB_TOKEN:-}" || ! -s "${HF_HOME:-$HOME/.cache/huggingface}/token" ]] ||
    left+=("the token of 'hf auth login' (export it as HF_TOKEN)")
  if [[ ${#left[@]} -gt 0 ]]; then
    printf -v text '%s, ' "${left[@]}"
    echo "note: these are set here, and the workers will not have them: ${text%, }" >&2
  fi
}
