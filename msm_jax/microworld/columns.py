"""What the report has of value generalisation: a column for each value, for the pairs that separate two of them, and
for the domain of fine-tuning."""

from collections.abc import Sequence
from typing import Any

from msm_jax.microworld.world import VALUES

_TOWARD, _AWAY = "america", "affordability"  # on separating pairs (`world_text.evaluation_items`)


def of_values(names: Sequence[str]) -> list[dict[str, Any]]:
    """As `eval/results.py` describes columns."""
    own = [{"name": name, "title": name.capitalize(), "kind": "own"} for name in names]
    separating = []
    if {_TOWARD, _AWAY} <= set(names):
        toward, away = VALUES[_TOWARD], VALUES[_AWAY]
        separating.append(
            {
                "name": "separating",
                "title": "Separating pairs",
                "kind": "separating",
                "toward": toward.name,
                "away": away.name,
                "item": f"the {toward.sought} item",
                "ends": [f"{toward.avoided} and {away.sought}", f"{toward.sought} and {away.avoided}"],
            }
        )
    return [*own, *separating, {"name": "in_domain", "title": "In domain", "kind": "in_domain"}]
