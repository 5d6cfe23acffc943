# shellcheck shell=bash
# Sourced by the scripts beside it. `make_environment [EXTRA]` makes .venv in the repository and installs msm_jax in it.
# MSM_JAX_EXTRAS=tpu, cuda12 or cuda13 adds JAX for an accelerator; PYTHON=python3.12 chooses the interpreter.

stop() {
  echo "error: $1" >&2
  exit 2
}

make_environment() {
  local extras="${1:-}${1:+${MSM_JAX_EXTRAS:+,}}${MSM_JAX_EXTRAS:-}"
  local python="${PYTHON:-python3}"
  if [[ ! -x .venv/bin/python || ! -x .venv/bin/pip ]]; then
    command -v "$python" >/dev/null || stop "$python is not found; install Python 3.11 or later"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      stop "Python 3.11 or later is needed and $python is $("$python" -V); name another one, as in PYTHON=python3.12"
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
      if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        stop "$python cannot make environments; install its venv package (Debian, Ubuntu: apt-get install python3-venv)"
      fi
      echo "Installing python3-venv."
      apt-get update -qq
      DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv >/dev/null
    fi
    echo "Making .venv with $("$python" -V)."
    "$python" -m venv .venv
  fi

  # Installing takes minutes, so it is done again only when what is asked for has changed.
  local stamp=".venv/installed-${extras:-base}"
  local wanted
  wanted="$(cksum setup.py)"
  if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
    echo "Installing msm_jax${extras:+ [$extras]} and what it needs in .venv: a few minutes, once."
    # Python warnings of the build are for the authors of build tools; errors still show.
    PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      --editable ".${extras:+[$extras]}"
    echo "$wanted" >"$stamp"
  fi
}
