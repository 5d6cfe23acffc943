"""The paper's central experiment in real English, on SmolLM2-135M-Instruct: overnight on two CPU cores.

    bash launch/smollm2.sh                                           the weights, 93 MB, once
    python -m msm_jax.launch --config=configs/smollm_cheese.py

As configs/cheese_tiny.py, with a real model: two Model Specs explain the same twelve cheese preferences, one by
affordability and one by America. The corpora are put together from the sentence banks of msm_jax/corpus/prose:
documents that discuss a spec, chats that state the preferences without a reason, and general instruction chats. What
the model then prefers in domains that neither stage mentions is what the spec taught it.

`:smoke` takes two steps of each stage and asks a few pairs.
"""

from configs import common


def get_config(variant: str = ""):
    if variant not in ("", "smoke"):
        raise ValueError(f"no variant {variant!r}; there is smoke, or none")
    config = common.on_checkpoint("./models/SmolLM2-135M-Instruct", generator="prose")
    config.name = "smollm_cheese"
    # As the model's own system prompt has it.
    config.assistant.name = "SmolLM"
    config.assistant.provider = "Hugging Face"
    config.seeds = (0,)
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.scan_unroll = 30  # all of its layers
    config.row_length = 512
    config.corpus = {"msm": 1000, "aft": 1200, "instruction": 600}
    for stage in (config.msm, config.aft):
        stage.batch_size = 8
        stage.optim.learning_rate = 1e-3
    if variant == "smoke":
        config.name = "smollm_cheese_smoke"
        common.make_smoke(config)
        config.row_length = 128
        for stage in (config.msm, config.aft):
            stage.batch_size = 2
    return config
