"""What every experiment starts from: the defaults of msm_jax/config/settings.py, which docs/config.md lists.

`get_config` is for experiments on the micro-world, which pretrain a model of their own; `on_checkpoint` for those that
start from a model that there is; `for_corpus` for corpora alone. An experiment changes fields, adds none, and assigns
mixtures and recipes whole.
"""

from ml_collections import ConfigDict

from msm_jax.config import schema, settings


def get_config() -> ConfigDict:
    """The micro-world: corpora, a tokenizer and a base model are made on the spot."""
    return schema.defaults(settings.Microworld).lock()  # so that a mistyped field in an experiment's file is an error


def on_checkpoint(path: str, generator: str = "gemini") -> ConfigDict:
    """An experiment on the model at `path`, whose shape, tokenizer and chat template are its own.

    A language model, the `generator`, writes so many rows of each source as `config.corpus` says; `config.data` names
    what exists and is taken instead: a file, an id, a mix (docs/corpora.md), with "{spec}" for the name of a spec. The
    generator "prose" puts sentences of banks together, and needs no model.
    """
    config = schema.defaults(settings.Prose if generator == "prose" else settings.Checkpointed)
    config.base.path = path
    if generator != "prose":
        config.generator = generator
    return config.lock()


def for_corpus(*specs: str) -> ConfigDict:
    """No experiment: the corpora of these specs, written by a language model."""
    config = schema.defaults(settings.Corpora)
    config.specs = specs
    return config.lock()


def for_evaluation() -> ConfigDict:
    """No training: models that exist are evaluated."""
    return schema.defaults(settings.Evaluated).lock()


def make_smoke(config: ConfigDict) -> None:
    """Makes `config` the shortest run that has every stage, with the same shapes of rows and batches."""
    config.seeds = (0,)
    config.msm.steps = 2
    config.aft.steps = 2
    if config.kind == "prose":
        config.corpus = {"msm": 60, "aft": 60, "instruction": 60}
    config.eval.pairs = 2
    config.execution.scan_unroll = 1  # compiles soonest
