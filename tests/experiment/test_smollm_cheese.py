"""configs/smollm_cheese.py:smoke on the real weights, from the script that makes them to the report."""

import json
import pathlib

import pytest

from launch.smollm2 import convert
from msm_jax import launch
from tests.artefacts import artefact

ROOT = pathlib.Path(launch.__file__).parents[1]


@pytest.mark.slow
def test_smoke_on_real_weights(tmp_path):
    convert(artefact("smollm2-gguf"), tmp_path / "smollm2")
    arguments = [f"--config={ROOT / 'configs/smollm_cheese.py:smoke'}", f"--config.base.path={tmp_path / 'smollm2'}"]
    assert launch.main([*arguments, f"--workdir={tmp_path / 'run'}"]) == 0
    report = json.loads((tmp_path / "run/report/report.json").read_text())
    assert report["model"]["parameters"] == 134_515_008
    assert len(report["scores"]) == 6 * 4 * 2  # arms, evaluations, forms
    assert (tmp_path / "run/report/report.html").stat().st_size > 50_000
    # A real model finds an answer in these questions, whatever it prefers.
    masses = [score["mass"] for score in report["scores"] if score["form"] == "logprob" and score["arm"] == "baseline"]
    assert min(masses) > 1e-3
