import hypothesis
import pytest
from hypothesis import strategies as st
from ml_collections import config_dict

from msm_jax import config
from msm_jax.errors import UserError

CONFIG = """
from ml_collections import ConfigDict, config_dict

def get_config(arg=None):
    if arg not in (None, "wide"):
        raise ValueError(f"no variant {arg}; there is wide")
    return ConfigDict({
        "name": "toy",
        "seeds": (0, 1),
        "arms": ("msm", "aft"),
        "layers": [1, 2],
        "mesh": {},
        "resume": None,
        "limit": config_dict.placeholder(int),
        "model": {"width": 64 if arg else 32, "tied": True, "lora": {"rank": 8}},
        "aft": {"steps": 60, "optim": {"learning_rate": 1e-4, "warmup": 10}},
        "msm": {"steps": 80, "optim": {"learning_rate": 2e-4, "warmup": 10}},
    })
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(CONFIG)
    return str(file)


def message(path, *overrides):
    with pytest.raises(UserError) as caught:
        config.load(path, overrides)
    return str(caught.value)


def test_variant(path):
    assert config.load(path).model.width == 32
    assert config.load(f"{path}:wide").model.width == 64


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("config.pretrain.step = 3", "config has no field step; did you mean steps?"),
        ("config.model.widht = 3", "config has no field widht; did you mean width?"),
        (
            "config.colour = 3",
            "config has no field colour; docs/config.md lists the fields, and a mixture is assigned whole",
        ),
        ("config.pretran.steps = 3", "config has no field pretran; did you mean pretrain?"),
        ("config.pretrain.steps = config.msm.stepz", "config has no field stepz; did you mean steps?"),
    ],
)
def test_a_mistyped_field_in_a_file_is_an_error(tmp_path, line, error):
    file = tmp_path / "mine.py"
    file.write_text(
        "from msm_jax.configs import common\n"
        f"def get_config():\n  config = common.get_config()\n  {line}\n  return config\n"
    )
    assert message(str(file)) == f"{file}:4: {error}"


def test_no_field_can_be_added(path):
    with pytest.raises(AttributeError):
        config.load(path).learning_rate = 1.0


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("name", "none", "none"),
        ("name", "3", "3"),
        ("seeds", "(0, 1, 2)", (0, 1, 2)),
        ("seeds", "3,4", (3, 4)),
        ("seeds", "()", ()),
        ("arms", "baseline,msm", ("baseline", "msm")),
        ("arms", "aft", ("aft",)),
        ("arms", "('aft',)", ("aft",)),
        ("layers", "[3]", [3]),
        ("resume", "runs/old", "runs/old"),
        ("resume", "3", 3),
        ("limit", "5", 5),
        ("limit", "none", None),
        ("model.tied", "False", False),
        ("model.lora.rank", "16", 16),
        ("aft.optim.learning_rate", "5e-5", 5e-5),
        ("aft.optim.learning_rate", "1", 1.0),
    ],
)
def test_override(path, field, text, value):
    changed = config.flatten(config.load(path, [(field, text)]))
    assert changed[field] == value
    assert type(changed[field]) is type(value)
    assert {**changed, field: None} == {**config.flatten(config.load(path)), field: None}


def test_the_last_override_of_a_field_wins(path):
    assert config.load(path, [("aft.steps", "1"), ("aft.steps", "2")]).aft.steps == 2


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("aft.learning_rat", "aft.optim.learning_rate"),
        ("msm.learning_rate", "msm.optim.learning_rate"),
        ("msm.stpes", "msm.steps"),
        ("rank", "model.lora.rank"),
        ("seed", "seeds"),
        ("aft.steps.x", "aft.steps"),
    ],
)
def test_unknown_field_names_the_nearest(path, field, meant):
    assert message(path, (field, "1")) == f"config has no field {field}; did you mean {meant}?"


def test_field_like_no_other(path):
    assert message(path, ("zzz", "1")) == "config has no field zzz; --mode=show lists the fields"


def test_group_is_not_a_field(path):
    expected = "config.aft is a group of fields; set one of them: aft.optim.learning_rate, aft.optim.warmup, aft.steps"
    assert message(path, ("aft", "1")) == expected


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("aft.steps", "many", "int, as in 60"),
        ("aft.steps", "1.5", "int, as in 60"),
        ("limit", "few", "int"),
        ("aft.optim.learning_rate", "fast", "float, as in 0.0001"),
        ("model.tied", "1", "bool, as in True"),
        ("seeds", "0", "tuple, as in (0, 1)"),
        ("seeds", "(0,", "tuple, as in (0, 1)"),
        ("seeds", "a,b", "tuple, as in (0, 1)"),
        ("seeds", "(0, 0.5)", "tuple, as in (0, 1)"),
        ("arms", "(0,)", "tuple, as in ('msm', 'aft')"),
        ("layers", "x", "list, as in [1, 2]"),
    ],
)
def test_wrong_type(path, field, text, expected):
    assert message(path, (field, text)) == f"config.{field} expects {expected}; {text!r} is given"


def test_a_group_without_fields_cannot_be_set(path):
    assert message(path, ("mesh", "{'data': 1}")).startswith("config.mesh is a ConfigDict and cannot be set")


def test_bad_variant(path):
    assert message(f"{path}:deep") == f"{path}: no variant deep; there is wide"


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("x = 1", ": has no get_config(); a config file defines it and returns a ConfigDict"),
        ("def get_config(): return {}", ": get_config returned dict, not an ml_collections.ConfigDict"),
        ("def get_config(arg): return {}", ": get_config needs a variant: --config=FILE:VARIANT"),
        ("\ndef get_config(:", ":2: invalid syntax"),
        ("\n\nimport no_such_module", ":3: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config():\n  return {}['a']", ":2: KeyError: 'a'"),
        ("def get_config():\n  raise ValueError('steps: 3')", ": steps: 3"),
    ],
)
def test_bad_file(tmp_path, text, end):
    file = tmp_path / "bad.py"
    file.write_text(text)
    assert message(str(file)) == f"{file}{end}"


def test_variant_of_a_file_without_variants(tmp_path):
    file = tmp_path / "plain.py"
    file.write_text("def get_config(): return {}")
    assert message(f"{file}:wide") == f"{file}: get_config takes no variant, and ':wide' is given"


def test_missing_file(tmp_path):
    assert "no/such.py: no such config file" in message("no/such.py")
    assert "no such config file" in message(str(tmp_path))


def test_not_a_python_file(tmp_path):
    file = tmp_path / "toy.yaml"
    file.write_text("name: toy")
    assert "no .py ending" in message(str(file))


def test_flatten_and_to_dict():
    nested = {"a": (1, (2, 3)), "b": {"c": None, "d": {}}}
    both = [nested, config_dict.ConfigDict(nested)]
    assert [list(config.flatten(value)) for value in both] == [["a", "b.c", "b.d"]] * 2
    assert [config.to_dict(value) for value in both] == [{"a": [1, [2, 3]], "b": {"c": None, "d": {}}}] * 2


def test_nearest():
    assert config.nearest("pro_amerca", ["pro_america", "pro_affordability"]) == "pro_america"
    assert config.nearest("zzz", ["pro_america"]) is None
    assert config.nearest("a", []) is None


@hypothesis.given(st.floats(allow_nan=False), st.lists(st.integers()), st.booleans())
@hypothesis.settings(max_examples=30)
def test_what_python_prints_is_read_back(rate, seeds, tied):
    toy = config_dict.ConfigDict({"rate": 1.0, "seeds": (0,), "tied": True})
    for field, value in {"rate": rate, "seeds": tuple(seeds), "tied": tied}.items():
        config.override(toy, field, str(value))
        assert toy[field] == value
