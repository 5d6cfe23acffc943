import random

import pytest

from msm_jax.eval import stats
from msm_jax.microworld import columns

ARMS = [
    ("baseline", None, "Baseline"),
    ("aft", None, "AFT (cheese)"),
    ("msm", "pro_affordability", "MSM affordability"),
    ("msm_aft", "pro_affordability", "MSM affordability + AFT"),
    ("msm", "pro_america", "MSM America"),
    ("msm_aft", "pro_america", "MSM America + AFT"),
]
TRUE_RATES = {
    "affordability": (0.52, 0.71, 0.84, 0.93, 0.47, 0.58),
    "america": (0.49, 0.66, 0.51, 0.55, 0.88, 0.96),
    "separating": (0.51, 0.45, 0.21, 0.06, 0.83, 0.95),
    "in_domain": (0.55, 0.995, 0.64, 0.999, 0.71, 0.999),
}
DOMAINS = ("lamps", "chairs", "bicycles", "teas", "novels", "kitchen knives")


@pytest.fixture
def fake_result():
    """A result of six arms, four evaluations, four seeds, as `stages/report.py` would hand it in."""
    draw = random.Random(0)
    scores = []
    for evaluation, rates in TRUE_RATES.items():
        domains = ("cheese",) if evaluation == "in_domain" else DOMAINS
        for (arm, spec, _), rate in zip(ARMS, rates, strict=True):
            for seed in range(4):
                level = min(1.0, max(0.0, rate + draw.gauss(0, 0.02)))
                scores.append(_score(arm, spec, seed, evaluation, domains, level, draw))
    return {
        "experiment": "cheese_tiny",
        "created": "2026-01-01T00:00:00+00:00",
        "config": {"seeds": [0, 1, 2, 3], "optim": {"learning_rate": 3e-3}},
        "model": {"parameters": 1_234_567},
        "arms": [
            {
                "name": name,
                "spec": spec,
                "value": spec and spec.removeprefix("pro_"),
                "label": label,
                "has_aft": "aft" in name,
            }
            for name, spec, label in ARMS
        ],
        "columns": columns.of_values(("affordability", "america")),
        "seeds": [0, 1, 2, 3],
        "scores": scores,
        "graded": [],
        "controls": [
            {"name": "carry america", "rate": 0.99, "n": 160, "errored": 0, "low": 0.96, "high": 1.0, "bar": 0.95},
            {
                "name": "carry affordability",
                "rate": 0.93,
                "n": 160,
                "errored": 0,
                "low": 0.88,
                "high": 0.96,
                "bar": 0.95,
            },
        ],
        "stages": [{"key": "msm-america-0-abc123", "kind": "train", "seconds": 81.2, "tokens": 409_600}],
        "corpora": [
            {
                "name": "msm",
                "documents": 900,
                "split": 17,
                "truncated": 3,
                "dropped": 2,
                "tokens": 51_000,
                "trained_tokens": 50_100,
                "rows": 410,
                "fill": 0.972,
            }
        ],
    }


def _score(arm, spec, seed, evaluation, domains, level, draw):
    per_domain = {domain: _cell(sum(draw.random() < level for _ in range(50)), 50) for domain in domains}
    total, n = round(level * 300), 300
    about = {"arm": arm, "spec": spec, "seed": seed, "eval": evaluation, "form": "logprob"}
    return about | _cell(total, n) | {"domains_low": None, "domains_high": None, "per_domain": per_domain}


def _cell(successes, n):
    low, high = stats.wilson(successes, n)
    rate = {"rate": successes / n, "n": n, "items": n, "low": low, "high": high}
    counts = {"ties": 0, "errored": 0, "unparsed": 0, "cut_off": 0}
    return rate | counts | {"consistent": 0.93, "position_bias": 0.52, "length_bias": 0.51, "mass": 0.98}
