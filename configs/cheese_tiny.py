"""The paper's central experiment (Figure 2) on a model small enough for two CPU cores.

    bash launch/local.sh
    python -m msm_jax.launch --config=configs/cheese_tiny.py

Two Model Specs explain the same twelve cheese preferences, one by affordability and one by America. A tiny decoder
is pretrained on the micro-world, midtrained on one of the two specs, and fine-tuned on chats that state the twelve
preferences without a reason. What it then prefers in domains that neither stage ever mentioned is what the spec
taught it.

Expect the American item on separating pairs at .74 after MSM America + AFT and at .06 after MSM affordability + AFT,
against .62 after the same AFT without MSM; and the control on the base at 1.0. How far the arms move depends on the
base, and another rounding makes another base: docs/micro-world.md has seven.
"""

from msm_jax.configs import common


def get_config(variant: str = ""):
    if variant not in ("", "smoke"):
        raise ValueError(f"no variant {variant!r}; there is smoke, or none")
    config = common.get_config()
    config.name = "cheese_tiny"
    config.model.width = 96
    config.model.mlp_width = 256
    config.model.dtype = "float32"
    config.execution.scan_unroll = config.model.num_layers
    config.row_length = 64
    config.lora.rank = 16
    config.lora.alpha = 32.0

    # Half as many made a base that names a third item in one sampled answer of ten (docs/micro-world.md).
    config.pretrain.steps = 3200
    config.corpus.pretraining = 300_000
    config.pretrain.batch_size = 32
    config.pretrain.optim.learning_rate = 3e-3
    config.pretrain.optim.beta2 = 0.98
    config.pretrain.optim.weight_decay = 0.03
    # Replay keeps the other agents as they are, so that what MSM changes is the assistant.
    config.msm.mixture = {"msm": 0.5, "replay": 0.5}
    config.msm.steps = 300
    config.aft.steps = 60
    # With the usual epsilon Adam moves every weight alike; with a large one steep directions lead. MSM then moved the
    # chats more, on most bases (docs/micro-world.md).
    for stage in (config.msm, config.aft):
        stage.batch_size = 16
        stage.optim.learning_rate = 2e-2
        stage.optim.epsilon = 1e-2
    # Enough to fit the cheeses in sixty steps; a faster AFT undoes some of MSM (docs/micro-world.md).
    config.aft.optim.learning_rate = 1e-3
    if variant == "smoke":
        config.name = "cheese_tiny_smoke"
        config.seeds = (0,)
        config.pretrain.steps = 200
        config.msm.steps = 30
        config.aft.steps = 20
        config.corpus.pretraining = 10_000
        config.eval.control_agents = 4
    return config
