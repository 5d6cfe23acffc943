"""The settings: each is said once, and the ConfigDict, the checks, what is shown and the page come from there."""

import dataclasses
import pathlib
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from msm_jax import config as config_lib
from msm_jax.config import document, schema
from msm_jax.config import settings as settings_
from msm_jax.config.schema import Range, setting
from msm_jax.config.settings import KINDS
from msm_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass
class Inner:
    rate: float = setting(0.5, "a share", Range(0, 1, ")"))
    steps: int | None = setting(None, "steps; none: all", Range(1, most=10))


@dataclasses.dataclass
class Outer:
    inner: Inner = setting(Inner(rate=0.25), "a group")
    names: tuple[str, ...] = setting(("a",), "names")
    word: str = setting("on", "a word", schema.Choice(("on", "off")))
    shares: dict[str, float] = setting({"a": 1.0}, "shares")


def faulty(change):
    """The error of a configuration after `change`."""
    config = schema.defaults(Outer)
    change(config)
    with pytest.raises(UserError) as caught:
        schema.check(config, Outer)
    return str(caught.value)


def test_defaults_are_those_of_the_class():
    config = schema.defaults(Outer)
    expected = {"inner": {"rate": 0.25, "steps": None}, "names": ["a"], "word": "on", "shares": {"a": 1.0}}
    assert config_lib.to_dict(config) == expected
    schema.check(config, Outer)
    config_lib.override(config, "inner.steps", "3")
    assert config.inner.steps == 3
    # A change of one configuration is no change of the defaults.
    config.shares.a = 2.0
    assert schema.defaults(Outer).shares.a == 1.0


def set_to(field, value):
    def change(config):
        group, _, name = field.rpartition(".")
        group = config[group] if group else config
        if name in group:
            del group[name]
        group[name] = value

    return change


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("inner.rate", 1.0, "config.inner.rate is 1.0; it must be from 0 to below 1"),
        ("inner.rate", float("nan"), "config.inner.rate is nan; it must be from 0 to below 1"),
        ("inner.rate", "x", "config.inner.rate is 'x'; it must be a number"),
        ("inner.rate", None, "config.inner.rate is none; give it a value"),
        ("inner.steps", 0, "config.inner.steps is 0; it must be 1 or more"),
        ("inner.steps", 11, "config.inner.steps is 11; it must be at most 10"),
        ("inner.steps", 1.5, "config.inner.steps is 1.5; it must be a whole number"),
        ("inner.steps", True, "config.inner.steps is True; it must be a whole number"),
        ("inner.stepz", 3, "config has no field inner.stepz; did you mean inner.steps?"),
        ("inner", 3, "config.inner is 3; it must be a group of fields"),
        ("names", ("a", 1), "config.names is ('a', 1); it must be a tuple of texts"),
        ("word", "of", "config.word is 'of'; choose one of on, off"),
        ("shares", 3, "config.shares is 3; it must be a group of fields"),
        ("colour", 3, "config has no field colour; delete it"),
    ],
)
def test_a_field_that_is_not_what_it_may_be(field, value, told):
    assert faulty(set_to(field, value)) == told


@pytest.mark.parametrize("field", ["inner", "names", "inner.rate"])
def test_a_field_that_is_lacking(field):
    def remove(config):
        group, _, name = field.rpartition(".")
        del (config[group] if group else config)[name]

    assert faulty(remove).startswith(f"the configuration lacks the field {field}")


@hypothesis.given(st.floats(), st.floats(-5, 5), st.floats(0, 5), st.sampled_from(["", "(", ")", "()"]))
@hypothesis.settings(max_examples=30)
def test_a_range_lets_through_what_it_says(value, low, length, ends):
    high = low + length
    inside = (low < value if "(" in ends else low <= value) and (value < high if ")" in ends else value <= high)
    assert (Range(low, high, ends).fault(value) == "") == inside


def test_shown_with_what_each_is(capsys):
    schema.show(schema.defaults(Outer), Outer)
    out = capsys.readouterr().out
    assert "\n  inner.steps = None" in out and "# steps; none: all" in out
    assert "\n  shares = {'a': 1.0}" in out


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_setting_has_a_sentence_and_a_default_that_it_may_have(kind):
    config = schema.defaults(kind)
    schema.check(config, kind)
    for one in schema.settings(kind):
        assert one.about and not one.about.endswith("."), one.name


def test_the_page_is_as_the_settings_make_it():
    """`python -m msm_jax.config.document > docs/config.md`"""
    assert (ROOT / "docs" / "config.md").read_text() == document.page()


def test_a_configuration_is_read_without_jax():
    code = "import sys; from msm_jax import config; config.load('cheese_tiny'); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_libraries_that_are_used_alone_have_the_same_defaults_and_names():
    from msm_jax.data.jinja_template import THINKING
    from msm_jax.models import REMAT_POLICIES, LoraConfig
    from msm_jax.models.kernels import KERNELS
    from msm_jax.train.optimizer import OptimizerConfig

    within = {one.name: one.within for kind in KINDS.values() for one in schema.settings(kind)}
    assert set(within["execution.remat"]) == set(REMAT_POLICIES)
    assert set(within["execution.attention"]) == {"auto", *KERNELS}
    assert set(within["chat.thinking"]) == set(THINKING)
    for settings, library in ((settings_.Lora, LoraConfig), (settings_.Optim, OptimizerConfig)):
        assert dataclasses.asdict(settings()) == dataclasses.asdict(library())
