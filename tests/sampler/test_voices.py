"""Adapters that are chosen by name are asked as they were trained."""

import json

from msm_jax.sampler.language_model import load
from tests.tiny_checkpoints import write_adapter

USER = [{"role": "user", "content": "Why?"}]
TURNS = {"system": ["", "\n"], "user": ["Q: ", "\n"], "assistant": ["A: ", "\n"]}


def test_an_adapter_with_a_template_of_its_own(imported, adapter, tmp_path):
    trained = write_adapter(tmp_path / "trained", imported)
    described = json.loads((trained / "model.json").read_text())
    (trained / "model.json").write_text(json.dumps(described | {"chat": TURNS | {"name": "Ann"}}))
    model = load(imported, {"plain": adapter, "trained": trained})
    assert model.voices.keys() == {"trained"} and model.voice_of("trained").name == "Ann"
    assert model.encode(USER, adapter="plain") == model.encode(USER)
    assert model.tokenizer.decode(model.encode(USER, adapter="trained")) == "Q: Why?\nA:"
    alone = load(imported, trained)
    [[expected]], [[found]] = (
        asked.generate([USER], temperature=0, max_tokens=5, **chosen)
        for asked, chosen in [(alone, {}), (model, {"adapter": "trained"})]
    )
    assert found == expected
    [[whole]] = model.generate([USER], temperature=0, max_tokens=5, adapter="trained", ignore_end=True)
    assert whole.tokens == 5 and not whole.finished


def test_a_base_in_8_bits_is_nearly_the_same(imported, adapter):
    """With adapters beside it, which keep their type."""
    asked = {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 0}
    whole, coarse = (load(imported, {"other": adapter}, int8=int8) for int8 in (False, True))
    assert coarse.sampler.engine.model.int8_base
    for chosen in (None, "other"):
        (exact,), (near,) = (
            model.generate(["the cat and the dog"], adapter=chosen, **asked)[0] for model in (whole, coarse)
        )
        differences = [
            abs(one.logprob - other.logprob)
            for one, other in zip(exact.prompt_logprobs, near.prompt_logprobs, strict=True)
        ]
        assert 0 < max(differences) < 0.05
