"""Imports flow one way, as docs/design.md draws it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# What each part may import of this project, besides itself and COMMON. A part is eval, or a child of msm_jax.
COMMON = {"msm_jax.errors", "msm_jax.files", "msm_jax.hub", "msm_jax.progress"}
LIBRARY = {"msm_jax.data", "msm_jax.models", "msm_jax.parallel", "msm_jax.train", "msm_jax.sampler"}
EXPERIMENT = LIBRARY | {
    "msm_jax.config",
    "msm_jax.dag",
    "msm_jax.checks",
    "msm_jax.corpus",
    "msm_jax.corpus_stages",
    "msm_jax.experiment",
    "msm_jax.experiment_corpora",
    "msm_jax.generation",
    "msm_jax.mirror",
    "msm_jax.scoring",
    "msm_jax.stages",
    "msm_jax.training",
    "msm_jax.weights",
    "eval",
}
ALLOWED = {
    "eval": set(),
    "msm_jax": {"msm_jax.language_model"},
    "msm_jax.cli": set(),
    "msm_jax.errors": set(),
    "msm_jax.files": set(),
    "msm_jax.hub": set(),
    "msm_jax.progress": set(),
    "msm_jax.config": set(),
    "msm_jax.dag": {"msm_jax", "msm_jax.config", "msm_jax.mirror"},
    "msm_jax.mirror": set(),
    "msm_jax.checks": {"msm_jax.config", "msm_jax.corpus", "msm_jax.data", "msm_jax.models", "msm_jax.parallel"},
    "msm_jax.corpus": set(),
    "msm_jax.data": {"msm_jax.corpus.records"},
    "msm_jax.parallel": set(),
    "msm_jax.models": {"msm_jax.parallel"},
    "msm_jax.train": {"msm_jax.data", "msm_jax.models", "msm_jax.parallel"},
    "msm_jax.sampler": {"msm_jax.data", "msm_jax.models", "msm_jax.parallel"},
    "msm_jax.stages": EXPERIMENT,
    "msm_jax.training": EXPERIMENT,
    "msm_jax.scoring": EXPERIMENT,
    "msm_jax.experiment": EXPERIMENT,
    "msm_jax.weights": {"msm_jax.data", "msm_jax.models", "msm_jax.parallel", "msm_jax.train"},
    "msm_jax.language_model": LIBRARY | {"msm_jax.corpus.records", "msm_jax.weights"},
    "msm_jax.own_model": LIBRARY | {"msm_jax.corpus", "msm_jax.language_model", "msm_jax.weights"},
    "msm_jax.plan": EXPERIMENT,
    "msm_jax.generation": {"msm_jax.checks", "msm_jax.corpus", "msm_jax.models", "msm_jax.own_model"},
    "msm_jax.experiment_corpora": EXPERIMENT,
    "msm_jax.corpus_stages": {
        *("msm_jax.checks", "msm_jax.config", "msm_jax.corpus", "msm_jax.dag", "msm_jax.generation", "msm_jax.mirror"),
        *("msm_jax.stages", "eval"),
    },
    "msm_jax.corpora": {
        *("msm_jax.checks", "msm_jax.config", "msm_jax.corpus", "msm_jax.corpus_stages", "msm_jax.dag"),
        *("msm_jax.generation", "msm_jax.mirror"),
    },
    "msm_jax.launch": {
        *("msm_jax.cli", "msm_jax.config", "msm_jax.corpora", "msm_jax.dag", "msm_jax.experiment"),
        *("msm_jax.parallel", "msm_jax.plan"),
    },
    "msm_jax.convert": {"msm_jax.cli", "msm_jax.conversion", "msm_jax.models", "msm_jax.weights"},
    "msm_jax.conversion": LIBRARY | {"msm_jax.exports", "msm_jax.language_model", "msm_jax.weights"},
    "msm_jax.exports": LIBRARY | {"msm_jax.weights"},
    "msm_jax.serve": LIBRARY,
}
# Imported inside functions only, so that what does not need it does not wait for it.
LAZY = {
    ("msm_jax.experiment", "eval"),
    ("msm_jax.corpus_stages", "eval"),
    ("msm_jax.stages", "eval"),
    ("msm_jax.scoring", "eval"),
    ("msm_jax.generation", "msm_jax.own_model"),
    ("msm_jax.generation", "msm_jax.models"),
    ("msm_jax.convert", "msm_jax.conversion"),
    ("msm_jax.convert", "msm_jax.models"),
    ("msm_jax.convert", "msm_jax.weights"),
    ("msm_jax.launch", "msm_jax.corpora"),
    ("msm_jax.launch", "msm_jax.dag"),
    ("msm_jax.launch", "msm_jax.experiment"),
    ("msm_jax.launch", "msm_jax.parallel"),
    ("msm_jax.launch", "msm_jax.plan"),
}
FOREIGN = {"configs", "launch", "specs", "benchmarks", "tests"}
LIBRARIES_NOT_FOR = {
    "jax": {"eval", "msm_jax.corpus", "msm_jax.config", "msm_jax.dag", "msm_jax.launch", "msm_jax.convert"},
    "ml_collections": {"eval", "msm_jax.corpus", "msm_jax.data", "msm_jax.models"},
}
LIBRARIES_NOT_FOR |= {library: LIBRARIES_NOT_FOR["jax"] for library in ("jaxlib", "flax", "optax", "orbax")}


def within(name, module):
    return name == module or name.startswith(f"{module}.")


def part_of(module):
    return ".".join(module.split(".")[: 2 if module.startswith("msm_jax.") else 1])


def modules(root):
    """(dotted name, path) of every module of msm_jax and eval."""
    for path in sorted([*root.glob("msm_jax/**/*.py"), *root.glob("eval/**/*.py")]):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(tree, known):
    """(dotted module, line, inside a function) of every import; `from package import module` names the module."""
    inside = {id(child) for node in ast.walk(tree) if is_function(node) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            members = [f"{base}.{alias.name}" for alias in node.names]
            names = [member if member in known else base for member in members]
        else:
            continue
        for name in names:
            yield name, node.lineno, id(node) in inside


def is_function(node):
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def complaint(part, name, lazy):
    """What is wrong with an import of `name` in `part`, or None."""
    library = name.split(".")[0]
    if name.startswith("."):
        return "is relative"
    if library in FOREIGN or part in LIBRARIES_NOT_FOR.get(library, ()):
        return "is not for this part"
    if library not in ("msm_jax", "eval"):
        return None
    allowed = ALLOWED[part]
    # The package itself is no way around the arrows to its modules.
    fits = name in allowed if name == "msm_jax" else any(within(name, module) for module in allowed - {"msm_jax"})
    if not (fits or name in COMMON or (part != "msm_jax" and within(name, part))):
        return "runs against the stream"
    if not lazy and any(part == reader and within(name, module) for reader, module in LAZY):
        return "must be inside a function"
    return None


def violations(root):
    found = dict(modules(root))
    lines = []
    for module, path in found.items():
        part = part_of(module)
        if part not in ALLOWED:
            lines.append(f"{path.relative_to(root)}: {part} has no place in ALLOWED")
            continue
        for name, line, lazy in imports(ast.parse(path.read_text()), found):
            if wrong := complaint(part, name, lazy):
                lines.append(f"{path.relative_to(root)}:{line}: import of {name} {wrong}")
    return lines


def test_imports_flow_one_way():
    assert violations(ROOT) == []


def test_all_parts_are_walked():
    parts = {part_of(module) for module, _ in modules(ROOT)}
    assert {"eval", "msm_jax", "msm_jax.corpus", "msm_jax.data", "msm_jax.models", "msm_jax.train"} <= parts


@pytest.mark.parametrize(
    ("path", "text", "wrong"),
    [
        ("msm_jax/corpus/a.py", "import jax.numpy as jnp", "jax.numpy is not for this part"),
        ("msm_jax/corpus/a.py", "def f():\n  from jax import numpy", "jax is not for this part"),
        ("msm_jax/corpus/a.py", "from msm_jax.data import rows", "msm_jax.data runs against the stream"),
        ("msm_jax/corpus/a.py", "from msm_jax import data", "msm_jax.data runs against the stream"),
        ("msm_jax/corpus/a.py", "import msm_jax", "msm_jax runs against the stream"),
        ("msm_jax/corpus/a.py", "import msm_jax.sampler", "msm_jax.sampler runs against the stream"),
        ("msm_jax/data/a.py", "from msm_jax.corpus import world", "msm_jax.corpus runs against the stream"),
        ("msm_jax/data/a.py", "from ml_collections import ConfigDict", "ml_collections is not for this part"),
        ("msm_jax/models/a.py", "from msm_jax.train.step import f", "msm_jax.train.step runs against the stream"),
        ("msm_jax/train/a.py", "from eval import stats", "eval runs against the stream"),
        ("msm_jax/train/a.py", "from configs import common", "configs is not for this part"),
        ("msm_jax/sampler/a.py", "from msm_jax.train import loop", "msm_jax.train runs against the stream"),
        ("msm_jax/sampler/a.py", "from ..train import loop", "..train is relative"),
        ("msm_jax/experiment.py", "from eval import stats", "eval must be inside a function"),
        ("msm_jax/launch.py", "from msm_jax.train import loop", "msm_jax.train runs against the stream"),
        ("eval/a.py", "from msm_jax.data.rows import pack", "msm_jax.data.rows runs against the stream"),
        ("eval/a.py", "async def f():\n  import flax", "flax is not for this part"),
        ("msm_jax/new/a.py", "", "msm_jax.new has no place in ALLOWED"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path, path, text, wrong):
    write(tmp_path, path, text)
    (line,) = violations(tmp_path)
    assert line.startswith(path)
    assert line.endswith(wrong)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("msm_jax/corpus/a.py", "from msm_jax import errors, files\nfrom msm_jax.corpus.records import Chat"),
        ("msm_jax/data/a.py", "from msm_jax.corpus import records\nimport jax"),
        ("msm_jax/experiment.py", "import jax\ndef f():\n  from eval import stats"),
        ("eval/a.py", "from eval import stats\nfrom msm_jax.errors import UserError\nimport numpy"),
        ("msm_jax/__init__.py", "def load():\n  from msm_jax.language_model import load"),
    ],
)
def test_a_right_arrow_passes(tmp_path, path, text):
    write(tmp_path, path, text)
    assert violations(tmp_path) == []


def write(root, path, text):
    for file in (
        "msm_jax/data/__init__.py",
        "msm_jax/errors.py",
        "msm_jax/files.py",
        "msm_jax/corpus/records.py",
        path,
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text if file == path else "")
