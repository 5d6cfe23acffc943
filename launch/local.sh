#!/usr/bin/env bash
# Makes the environment, then runs the main job: bash launch/local.sh [--config=configs/NAME.py] [--config.FIELD=VALUE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

make_environment
# A decoder this small leaves half of two cores idle: as two devices, each takes half of the rows.
export JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-2}"
exec .venv/bin/python -m msm_jax.launch --config=configs/cheese_tiny.py "$@"
