#!/usr/bin/env bash
# Makes the environment, then runs the main job: bash launch/local.sh [--config=configs/NAME.py] [--config.FIELD=VALUE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

make_environment
exec .venv/bin/python -m msm_jax.launch --config=configs/cheese_tiny.py "$@"
