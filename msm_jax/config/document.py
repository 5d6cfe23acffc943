"""Writes docs/config.md from the settings: `python -m msm_jax.config.document > docs/config.md`."""

import textwrap
from typing import get_origin

from msm_jax.config.schema import Setting, settings
from msm_jax.config.settings import Checkpointed, Corpora, Experiment, Microworld, Prose

_PAGE = """\
# Settings

Every field of a configuration, as `python -m msm_jax.config.document` writes them from
[msm_jax/config/settings.py](../msm_jax/config/settings.py). All but groups can be set on the command line:
`--config.aft.optim.learning_rate=5e-5`, `--config.seeds='(0, 1)'`, `--config.arms=baseline,msm_aft`; of a group its
members that are there, as `--config.aft.mixture.aft=0.7`. `none` clears a field whose column says "or none".
`--mode=show` prints them as a run will see them.

## Arms

`config.arms` names recipes: `baseline`, `aft`, `aft_cot`, `msm`, `msm_aft`, `msm_aft_cot`, and `msm_only`, which stops
after MSM. A recipe is data: its training steps, each a section (`msm` or `aft`) whose settings it is trained by, and
what that section's mixture has in place of a source. More of them are lines of a configuration, in a file:

```python
config.specs = ("specs/rules.md", "specs/value_augmented.md", "specs/anti_spec.md")
config.aft_spec = "rules"  # of the AFT chats of arms that name no spec
config.recipes = {
    # MSM on one spec, AFT on the chats of another.
    "cross": (("msm", {"msm": "msm@rules"}), ("aft", {"aft": "aft@value_augmented"})),
    # A quarter of the AFT chats are of the anti-spec.
    "dose": (("msm", {"msm": "msm@rules"}), ("aft", {"aft": {"aft@rules": 0.75, "aft@anti_spec": 0.25}})),
    # Documents among the instruction chats, for each spec.
    "interleaved": (("aft", {"instruction": {"instruction": 0.5, "msm": 0.5}}),),
}
config.arms = ("baseline", "msm_aft", "cross", "dose", "interleaved")
config.aft.steps = 150  # an epoch takes each row once, whatever its share: parts need a number of steps
config.chats.unattached = False  # the anti-spec argues for what bars a row otherwise
```

`source@spec` is of one spec of `config.specs`; `msm` alone makes an arm for each of them; `""` leaves a source out.
What arms share is trained once.
"""
_SECTIONS = (
    (Experiment, "All experiments", "`mesh`, `execution`, `checkpoint`, `log` and `expected_tokens` change no result "
     "but by rounding: a run may go on with other values. `config.aft` has the fields of `config.msm`."),
    (Microworld, "On the micro-world", "`common.get_config()`. `config.pretrain` has the fields of `config.msm`."),
    (Checkpointed, "On a checkpoint", "`common.on_checkpoint(path)`: corpora that exist, or that a language model "
     "writes ([corpora](corpora.md)). `calls` changes nothing of what is written."),
    (Prose, "On a checkpoint, with sentence banks", "`common.on_checkpoint(path, generator=\"prose\")`."),
    (Corpora, "Corpora alone", "`common.for_corpus(spec, ...)`. The fields of `generation`, `documents`, `chats` and "
     "`calls` are those of an experiment on a checkpoint."),
)  # fmt: skip


def page() -> str:
    """The whole page, Markdown."""
    lines, told = [_PAGE], {}
    for kind, title, about in _SECTIONS:
        lines += [
            f"## {title}\n",
            textwrap.fill(about, 120, break_on_hyphens=False) + "\n",
            "| field | default | may be | what it is |",
            "|---|---|---|---|",
        ]
        for one in settings(kind):
            as_msm = one.name.startswith(("aft.", "pretrain.")) and not one.name.endswith(".mixture")
            if one.name != "kind" and one != told.get(one.name) and not as_msm:
                lines.append(f"| `{one.name}` | `{one.default!r}` | {_may_be(one)} | {one.about} |")
            told[one.name] = one
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _may_be(one: Setting) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "`True`, `False`"}
    kind = "group" if get_origin(one.type) is dict else names.get(one.type, "tuple")
    told = kind if one.within is None else str(one.within) if kind != "tuple" else f"tuple, each {one.within}"
    return f"{told}, or none" if one.optional else told


if __name__ == "__main__":
    print(page(), end="")
