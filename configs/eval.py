"""Models that exist, evaluated: a base and any number of adapters over it. Nothing is trained.

    python -m msm_jax.launch --config=configs/eval.py:am --config.base.path=Qwen/Qwen2.5-32B-Instruct \\
        --config.adapters=msm_aft=ORG/ADAPTER@main,aft=runs/a/stages/aft-aft-s0-0123456789ab

The variant is what is asked: `am` agentic misalignment, `qa` open questions, `values` the pairs of the values that
`--config.specs` are about; `all`: these, kinds of reasoning, talk about being
tested, everyday questions, and what the model knew. Adapters are
folders, stages of a workdir or ids of the hub, of ours or of `peft`; the report has a bar for each, and one for the
base alone. The base is read once and stays on the devices.

`--mode=show` says what is asked, what it costs to judge, and what differences it can find; `--config.generator=offline`
judges by a script, for a look that costs nothing.
"""

from msm_jax.configs import common

VARIANTS = {
    "am": ("agentic_misalignment",),
    "qa": ("open_qa",),
    "values": ("values",),
    "all": ("values", "open_qa", "agentic_misalignment", "reasoning", "eval_awareness", "side_effects", "capability"),
}


def get_config(variant: str = "all"):
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    config = common.for_evaluation()
    config.name = f"eval_{variant}"
    config.evaluations = VARIANTS[variant]
    return config
