"""The paper's central experiment in real English, on SmolLM2-135M-Instruct: overnight on two CPU cores.

    bash launch/smollm2.sh                                           the weights, 93 MB, once
    python -m msm_jax.launch --config=configs/smollm_cheese.py

As configs/cheese_tiny.py, with a real model: two Model Specs explain the same twelve cheese preferences, one by
affordability and one by America. The corpora are put together from the sentence banks of msm_jax/corpus/prose:
documents that discuss a spec, chats that state the preferences without a reason, and general instruction chats. What
the model then prefers in domains that neither stage mentions is what the spec taught it.

The recipe is the paper's (configs/llama8b_cheese.py lists it) but for what a small model on a CPU asks:

    learning rate     1e-3 for MSM, 5e-4 for AFT: about 200 and 40 steps of 1,280 tokens
    rows              640 tokens, two of them a step
    corpora           800 documents of each spec, 400 chats and 400 instruction chats, all put together from sentences
                      that stand in the repository; 40 % of the documents are interviews, some with the
                      evaluation's own words ("Answer with one of the two and nothing else")
    seeds             one, so that intervals are over items
    evaluation        60 pairs of each kind, in both orders, by log-probability; `--config.eval.samples=1` draws answers

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
    config.row_length = 640  # two documents
    config.corpus = {"msm": 800, "aft": 400, "instruction": 400}
    for stage in (config.msm, config.aft):
        stage.batch_size = 2
    config.msm.optim.learning_rate = 1e-3
    config.aft.optim.learning_rate = 5e-4
    config.eval.pairs = 60
    config.eval.samples = 0  # on a CPU, answers that are drawn take as long again
    config.checkpoint.every = 50
    if variant == "smoke":
        config.name = "smollm_cheese_smoke"
        common.make_smoke(config)
        config.row_length = 128
        config.eval.samples = 1
    return config
