"""The corpora of one Model Spec, written by a language model: MSM documents and AFT chats, no training.

    export GEMINI_API_KEY=...
    python -m msm_jax.launch --config=configs/corpus.py:philosophy --mode=show    tokens and dollars; calls nothing
    python -m msm_jax.launch --config=configs/corpus.py:philosophy \\
        --config.assistant.name=Qwen --config.assistant.provider='Alibaba Cloud'

The variant is the name of a file in specs/; `--config.specs=mine/spec.md` names any other. Without a key,
`--config.generator=offline` runs the same pipeline on the spec's own sentences: to see what comes out, not to train on.

The paper has 41M tokens of documents for the philosophy spec (13,200 of some 3,100 tokens) and about 8M for each cheese
spec (4,600 to 6,400 of some 1,500); 10,000 AFT chats for the one and 5,000 for the others. `--config.corpus.msm`,
`--config.corpus.aft` and `--config.documents.words` say how many and how long; `--config.documents.tokens=8e6` writes
documents until they hold so many tokens, and `--config.corpus.identity=2500` adds chats on who the model is.
"""

import pathlib

from msm_jax.configs import common

SPECS = pathlib.Path(__file__).parents[1] / "specs"


def get_config(variant: str = "philosophy"):
    if not (SPECS / f"{variant}.md").exists():
        names = ", ".join(sorted(path.stem for path in SPECS.glob("*.md")))
        raise ValueError(f"no spec {variant!r} in specs/; there are {names}")
    config = common.for_corpus(f"specs/{variant}.md")
    config.name = f"corpus_{variant}"
    # It argues for what bars a row of any other spec.
    config.chats.unattached = variant != "anti_spec"
    return config
