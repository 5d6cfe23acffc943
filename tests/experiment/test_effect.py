"""The headline effect, from the command that README gives first: nightly, for it takes ten minutes."""

import json
import pathlib

import pytest

from msm_jax import launch

ROOT = pathlib.Path(launch.__file__).parents[1]
# The smallest difference of seven bases (docs/micro-world.md) was .41: each rounding makes another base, so the bar
# that the run asks of itself, .6, is not reached on every machine.
BAR = 0.4


@pytest.mark.slow
def test_the_same_chats_after_two_specs_lead_to_opposite_choices(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert launch.main(["--config=configs/cheese_tiny.py", f"--workdir={tmp_path / 'w'}"]) == 0
    report = json.loads((tmp_path / "w/report/report.json").read_text())
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["Same AFT, opposite choice (Separating pairs)"]["value"] > BAR
    assert found["MSM adds to AFT (Affordability)"]["value"] > 0
    assert found["MSM adds to AFT (America)"]["value"] > 0
    assert found["AFT took (In domain)"]["value"] >= 0.95
    assert all(control["rate"] >= control["bar"] for control in report["controls"])
