"""Section 3 of the paper: two specs, one set of cheese preferences, two generalisations, on Llama-3.1-8B.

    python -m msm_jax.launch --config=configs/llama8b_cheese.py

It is asked what configs/cheese_tiny.py asks, value generalisation on pairs of our own; `--config.evaluations=values`
asks 1,038 pairs and opinions in held-out domains instead (docs/evaluations.md). It was not run yet: no accelerator was
at hand.

The base is the pretrained model, which has no chat template: chats are written in the paper's own (llama3_paper). It is
trained by the recipe of appendix B.4: LoRA of rank 64 and alpha 128 on all seven matrices, one epoch of each stage,
AdamW at 1e-4 with weight decay .01, cosine after 5 % of warm-up, rows of 4,096 tokens; assistant tokens alone are
trained in chats, all tokens in documents; AFT goes on with the adapter of MSM; four seeds.

The corpora: 5,300 documents of each spec, about 8M tokens as in the paper, and 5,000 chats of the twelve preferences
are written by a language model (docs/corpora.md; `--mode=show` says at what price, and config.calls.budget has to allow
it). The instruction mix is the paper's: No Robots and 4,000 formatted MMLU items, 13,500 chats, as in its released
splits; its text has 2,500 on identity among them (`--config.corpus.identity=2500` adds some). Or name what there is:
`--config.data.msm='data/{spec}.jsonl'`, a file or the id of a data set.

What the paper leaves open, and what is chosen here:

    tokens per step   16 packed rows, 65,536 tokens: about 125 steps of MSM
    packing           best fit, chats and documents never see each other
    betas, epsilon    .9, .999, 1e-8
    clipping          global norm 1.0
    cosine floor      0
    evaluation        pairs of our own in held-out domains, in both orders; log-probability form and one sampled answer

Expect Figure 2: on the paper's pairs America .55 after MSM America + AFT, .38 after MSM affordability + AFT. Ours are
other pairs, so compare differences between arms.

`:smoke` takes two steps of each stage with one seed, on corpora from the sentence banks of msm_jax/microworld/prose.
"""

from msm_jax.configs import common


def get_config(variant: str = ""):
    if variant not in ("", "smoke"):
        raise ValueError(f"no variant {variant!r}; there is smoke, or none")
    config = common.on_checkpoint("meta-llama/Llama-3.1-8B", generator="prose" if variant else "gemini")
    config.name = "llama8b_cheese"
    config.chat.template = "llama3_paper"
    config.assistant.name = "Llama"
    config.assistant.provider = "Meta"
    for stage in (config.msm, config.aft):
        stage.batch_size = 16
    config.mesh.data, config.mesh.fsdp = 1, -1  # one copy of the weights over all chips
    config.expected_tokens.update(msm=8e6, aft=5e5, instruction=4e6)  # of the chats guessed
    if variant == "smoke":
        config.name = "llama8b_cheese_smoke"
        common.make_smoke(config)
    else:
        config.corpus.msm = 5300
        config.corpus.aft = 5000
        config.data.instruction = "cheese.toml"
        config.documents.words = 900
    return config
