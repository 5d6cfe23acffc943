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
.venv/bin/lint-imports --no-logo
# A file of tests goes to one worker, which makes its fixtures once; tests/conftest.py says which come first.
.venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
