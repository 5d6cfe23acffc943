"""The paper's central experiment in real English, on SmolLM2-135M-Instruct: four hours on two CPU cores.

    bash launch/smollm2.sh                                           the weights, 93 MB, once
    python -m msm_jax.launch --config=configs/smollm_cheese.py

As configs/cheese_tiny.py, with a real model: two Model Specs explain the same twelve cheese preferences, one by
affordability and one by America. The corpora are put together from the sentence banks of msm_jax/microworld/prose:
documents that discuss a spec, chats that state the preferences without a reason, and general instruction chats. What
the model then prefers in domains that neither stage mentions is what the spec taught it.

The recipe is the paper's (configs/llama8b_cheese.py lists it) but for what a small model on a CPU asks:

    learning rate     1e-3 for MSM, 5e-4 for AFT: about 200 and 36 steps of 1,280 tokens
    rows              640 tokens, two of them a step
    corpora           800 documents of each spec, 400 chats and 400 instruction chats; 40 % of the documents are
                      interviews, some with the evaluation's own words ("Answer with one of the two and nothing else")
    seeds             one, so that intervals are over items
    evaluation        60 pairs of each kind, in both orders, by log-probability; `--config.eval.samples=1` draws answers

What to expect: a run that goes through everything a large model goes through, and not the paper's effect. Rates by
log-probability, in brackets 95 % over 60 items (36 cheeses in domain), on the x86 of two cores that the recipe was
made on:

    arm                        affordability    America          separating, American    in domain
    Baseline                   .42 [.30, .54]   .53 [.41, .65]   .52 [.39, .64]          .50 [.34, .66]
    AFT                        .35 [.24, .48]   .48 [.36, .61]   .48 [.36, .61]          1.0 [.90, 1.0]
    MSM affordability          .52 [.39, .64]   .53 [.41, .65]   .43 [.32, .56]          .72 [.56, .84]
    MSM affordability + AFT    .55 [.42, .67]   .53 [.41, .65]   .45 [.33, .58]          1.0 [.90, 1.0]
    MSM America                .50 [.38, .62]   .52 [.39, .64]   .42 [.30, .54]          .58 [.42, .73]
    MSM America + AFT          .42 [.30, .54]   .47 [.35, .59]   .47 [.35, .59]          1.0 [.90, 1.0]

The cheeses are learnt. With AFT the affordability spec stands at +.20 over AFT alone on its own value; the America
spec raises America in no arm, and on separating pairs the two specs are not told apart (+.02, where +.6 would be the
effect). Margins of log-probability say the same: on separating pairs the two arms with AFT differ by 0.4 nats, with a
standard error of 0.3, where items differ by three. It is one seed, so what lies within the intervals may be chance.
Whether more documents, more steps or a larger model would change it was not tried.

`:smoke` takes two steps of each stage and asks a few pairs.
"""

from msm_jax.configs import common


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
    config.execution.remat = "save_projections"  # as fast as none, in less memory
    config.execution.scan_unroll = 30  # all of its layers
    config.row_length = 640  # two documents
    config.expected_tokens.update(msm=2.5e5, aft=2.4e4, instruction=2.1e4)
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
