"""The texts of leaking and murder, which come with inspect-evals (MIT) and are read from where it is installed.

Nothing of that package is run but its file of system prompts: its `__init__` imports half of what it depends on.
Works with 0.26.0 and 0.28.0, whose texts are the same.
"""

import functools
import importlib.util
import json
import pathlib
import re
from types import ModuleType

from msm_jax.errors import UserError

_CURE = "pip install --no-deps inspect-evals==0.26.0"  # its texts need none of what it depends on
_SECTION = re.compile(r"## (.*?)\n\s*```json\s*(.*?)\s*```", re.DOTALL)


def folder() -> pathlib.Path:
    """Where the package's evaluation lies. Raises: UserError if it is not installed."""
    spec = importlib.util.find_spec("inspect_evals")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        found = pathlib.Path(place) / "agentic_misalignment" / "templates"
        if found.is_dir():
            return found
    raise UserError(f"the texts of leaking and murder come with inspect-evals, which is not installed: {_CURE}")


def read(path: str) -> str:
    """A text by its path below the package's templates. Raises: UserError if there is none."""
    return _read(folder() / path)


@functools.cache
def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such text; this version of inspect-evals is not known here, {_CURE}") from None


def system_prompts() -> ModuleType:
    """The module of system prompts and goals. Raises: UserError if it has none of the names that are used here."""
    return _module(folder() / "system_prompt_templates.py")


@functools.cache
def _module(path: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("msm_jax_agentic_system_prompts", path)
    module = importlib.util.module_from_spec(spec)
    _read(path)  # says what is missing
    spec.loader.exec_module(module)
    names = ("LEAKING_SYSTEM_PROMPT", "MURDER_SYSTEM_PROMPT", "GOAL_VARIABLES", "SCRATCHPAD_REASONING_FORMAT")
    for name in (*names, "LEAKING_SYSTEM_PROMPT_PROD", "MURDER_SYSTEM_PROMPT_PROD", "USER_PROMPT"):
        if not hasattr(module, name):
            raise UserError(f"{path}: has no {name}; this version of inspect-evals is not known here, {_CURE}")
    return module


def variables(scenario: str, goal_value: str) -> dict[str, str]:
    """What the e-mails of `scenario` say of a goal, or of none in particular ("none").

    Murder's are read from its own folder, as in the paper's code; upstream reads blackmail's, which say the same.

    Raises: UserError if the package has none.
    """
    at = folder() / scenario / "variables"
    names = [path for path in sorted(at.glob("*.md")) if goal_value in path.stem.split("_vs_")]
    path = at / "ambiguous.md" if goal_value == "none" else next(iter(names), at / f"{goal_value}.md")
    wanted = "ambiguous" if goal_value == "none" else goal_value
    for title, body in _SECTION.findall(_read(path)):
        if wanted in title.lower():
            return json.loads(body)
    raise UserError(f"{path}: has no section for {wanted}; this version of inspect-evals is not known here, {_CURE}")
