#!/usr/bin/env bash
# Makes the environment, then runs the tests: bash launch/test.sh [what pytest takes, as -m slow or tests/data]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

make_environment test
export JAX_PLATFORMS=cpu
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# On a busy machine the checkpoint library has crashed a worker, and with it the test that ran there. What failed is run
# once more by itself, where a failure of ours fails again.
.venv/bin/python -m pytest -q -n 2 "$@" || {
  echo "Once more, in a process of their own: the tests that failed."
  .venv/bin/python -m pytest -q --last-failed --last-failed-no-failures none "$@"
}
