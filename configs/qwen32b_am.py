"""Section 4 of the paper: the philosophy spec, and agentic misalignment out of distribution, on Qwen.

    python -m msm_jax.launch --config=configs/qwen32b_am.py               Qwen2.5-32B-Instruct
    python -m msm_jax.launch --config=configs/qwen32b_am.py:qwen3         Qwen3-32B
    python -m msm_jax.launch --config=configs/qwen32b_am.py:qwen2_5_14b   and :qwen3_14b

It was not run yet: no accelerator was at hand. Models are asked open questions on their own conduct, which a judge
grades; `--config.evaluations=open_qa,agentic_misalignment` is the agentic evaluation too, which needs the texts of
inspect-evals (docs/evaluations.md).

The recipe is that of appendix B.4: LoRA of rank 64 and alpha 128 on all seven matrices, one epoch of each stage, AdamW
at 1e-4 with weight decay .01, cosine after 5 % of warm-up, rows of 8,192 tokens; assistant tokens alone are trained in
chats, all tokens in documents; AFT goes on with the adapter of MSM, and the arms without AFT see the instruction chats
alone; four seeds. `aft_cot` is the deliberative-alignment baseline, on the same chats with their reasoning.

Qwen3 thinks. Its chats with reasoning are written as its template writes them; those without get /no_think on the
system and the last user message, as the paper switches thinking off.

The corpora: 13,200 documents and 10,000 AFT chats with reasoning are written by a language model (docs/corpora.md;
`--mode=show` says at what price, and config.calls.budget has to allow it), as many as the paper has: 41M tokens of
documents, 8M assistant tokens with reasoning and 5M without. The instruction mix is that of the paper's Table 2, 10,000
chats of 2M assistant tokens. Or name what there is: `--config.data.msm=data/msm.jsonl`, `--config.data.aft=...`,
`--config.data.aft_cot=...`, a file or the id of a data set.

What the paper leaves open, and what is chosen here:

    tokens per step   16 packed rows, 131,072 tokens: about 315 steps of MSM
    packing           best fit, chats and documents never see each other
    betas, epsilon    .9, .999, 1e-8
    clipping          global norm 1.0
    cosine floor      0
    /no_think         no system message is added to chats that have none; the released splits without reasoning add one

`:smoke` takes two steps of each stage, with one seed, of Qwen2.5-32B-Instruct or of whatever --config.base.path names.
"""

from msm_jax.configs import common

MODELS = {
    "qwen2_5": "Qwen/Qwen2.5-32B-Instruct",
    "qwen3": "Qwen/Qwen3-32B",
    "qwen2_5_14b": "Qwen/Qwen2.5-14B-Instruct",
    "qwen3_14b": "Qwen/Qwen3-14B",
    "smoke": "Qwen/Qwen2.5-32B-Instruct",
}


def get_config(variant: str = "qwen2_5"):
    if variant not in MODELS:
        raise ValueError(f"no variant {variant!r}; there are {', '.join(MODELS)}")
    config = common.on_checkpoint(MODELS[variant])
    config.name = f"qwen32b_am_{variant}"
    config.specs = ("specs/philosophy.md",)
    config.arms = ("baseline", "aft", "aft_cot", "msm", "msm_aft", "msm_aft_cot")
    config.evaluations = ("open_qa",)
    config.assistant.name = "Qwen"
    config.assistant.provider = "Alibaba Cloud"
    config.row_length = 8192
    for stage in (config.msm, config.aft):
        stage.batch_size = 16
    # One copy of the weights over all chips: the smallest slices have no memory for two.
    config.mesh.data, config.mesh.fsdp = 1, -1
    # Documents as the paper counts them; of chats it counts what is trained, and half as much is guessed for prompts.
    config.expected_tokens.update(msm=41e6, aft=7.5e6, aft_cot=10.5e6, instruction=3e6)
    if variant.startswith("qwen3"):
        config.chat.thinking = "tag"
    config.corpus.msm = 13_200
    config.corpus.aft = 10_000
    config.data.instruction = "philosophy.toml"
    if variant == "smoke":
        common.make_smoke(config)
    return config
