"""Model Spec Midtraining on TPUs; see README.md."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msm_jax.sampler.language_model import LanguageModel

__version__ = "0.1.0"
__all__ = ["load"]


def load(path: Any, adapter: Any = None, **options: Any) -> "LanguageModel":
    """A model on disk, ready to be asked: `.logits(tokens)`, `.generate(prompts, ...)`, `.tokenizer`.

    See `msm_jax.sampler.language_model.load` for the arguments. Imported here when it is called, for it needs JAX.
    """
    from msm_jax.sampler import language_model

    return language_model.load(path, adapter, **options)
