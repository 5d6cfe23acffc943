"""Reads an experiment's configuration: a Python file, a variant of it, and overrides from the command line.

`FILE[:ARG]` is a Python file whose `get_config()` or `get_config(ARG)` returns an `ml_collections.ConfigDict`. The
override syntax is that of `ml_collections.config_flags`. It is read here because there a mistyped field ends in a
traceback, and here it ends in one line that names the field that was probably meant.
"""

import ast
import difflib
import importlib.util
import inspect
import pathlib
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from msm_jax.errors import UserError


def load(path_with_arg: str, overrides: Sequence[tuple[str, str]] = ()) -> config_dict.ConfigDict:
    """Calls `get_config` of the file and applies the overrides.

    Args:
        path_with_arg: "configs/NAME.py" or "configs/NAME.py:ARG".
        overrides: (dotted field, value as typed), in order; of two for one field the last wins.

    Returns:
        The configuration, locked: no field can be added to it.

    Raises:
        UserError: no such file, an error in it, a bad variant, an unknown field, a value of the wrong type.
    """
    path, _, variant = path_with_arg.partition(":")
    module = _import_file(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path}: has no get_config(); a config file defines it and returns a ConfigDict")
    arguments = (variant,) if variant else ()
    try:
        inspect.signature(module.get_config).bind(*arguments)
    except TypeError:
        demand = f"takes no variant, and ':{variant}' is given" if variant else "needs a variant: --config=FILE:VARIANT"
        raise UserError(f"{path}: get_config {demand}") from None
    config = _in_file(path, lambda: module.get_config(*arguments))
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(f"{path}: get_config returned {type(config).__name__}, not an ml_collections.ConfigDict")
    for field, text in overrides:
        override(config, field, text)
    return config.lock()


def override(config: config_dict.ConfigDict, field: str, text: str) -> None:
    """Sets `config.field` to `text`, read as the type that the field has.

    A field that holds None and declares no type takes any Python literal, or else the text itself. "none" unsets a
    field of any type but str. A tuple of strings may be written `a,b`.

    Raises:
        UserError: the field is unknown or is a group of fields, or the value is not of its type.
    """
    values = flatten(config)
    if field not in values:
        raise UserError(_unknown(field, values))
    *groups, leaf = field.split(".")
    group = config
    for name in groups:
        group = group[name]
    group[leaf] = _parse(field, text, group.get_type(leaf), values[field])


def flatten(config: config_dict.ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """{"aft.optim.learning_rate": 5e-5, ...}: the fields that are not groups, and the groups that are empty."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, config_dict.ConfigDict | Mapping) and value:
            flat |= {f"{name}.{field}": inner for field, inner in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def to_dict(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Plain nested dictionaries that JSON can hold: tuples become lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, config_dict.ConfigDict | Mapping):
            return {name: plain(inner) for name, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, tuple | list) else value

    return plain(config)


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` was probably meant to be, or None.

    Of a dotted name the last part may count for half, so that `rank` finds `model.lora.rank`.
    """

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.split(".")[-1], candidate.split(".")[-1]).ratio()
        return max(whole, (whole + last) / 2)

    best = max(candidates, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.6 else None


def _unknown(field: str, values: Mapping[str, Any]) -> str:
    inside = [name for name in values if name.startswith(f"{field}.")]
    if inside:
        return f"config.{field} is a group of fields; set one of them: {', '.join(inside)}"
    meant = nearest(field, values)
    hint = f"did you mean {meant}?" if meant else "--mode=show lists the fields"
    return f"config has no field {field}; {hint}"


def _parse(field: str, text: str, expected: type, current: Any) -> Any:
    if expected is str:
        return text
    if text.lower() == "none":
        return None
    if expected is type(None):
        return _literal(text, text)
    example = "" if current is None else f", as in {current!r}"
    error = UserError(f"config.{field} expects {expected.__name__}{example}; {text!r} is given")
    if expected is bool:
        if text.lower() not in ("true", "false"):
            raise error
        return text.lower() == "true"
    if expected in (int, float):
        try:
            return expected(text)
        except ValueError:
            raise error from None
    if expected in (tuple, list):
        kinds = {type(item) for item in current or ()}
        if kinds == {str} and not text.startswith(("(", "[")):
            return expected(item.strip() for item in text.split(","))
        value = _literal(text, None)
        if not isinstance(value, tuple | list) or (kinds and not {type(item) for item in value} <= kinds):
            raise error
        return expected(value)
    raise UserError(
        f"config.{field} is a {expected.__name__} and cannot be set on the command line; set it in the file"
    )


def _literal(text: str, default: Any) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return default


def _import_file(path: str) -> Any:
    if not pathlib.Path(path).is_file():
        raise UserError(
            f"{path}: no such config file (in {pathlib.Path.cwd()}); give --config=FILE.py or FILE.py:VARIANT"
        )
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    if spec is None:
        raise UserError(f"{path}: a config file is a Python file, and this has no .py ending")
    module = importlib.util.module_from_spec(spec)
    _in_file(path, lambda: spec.loader.exec_module(module))
    return module


def _in_file(path: str, call: Callable[[], Any]) -> Any:
    """Runs code of the user's config file: what goes wrong there is told with the line of that file."""
    try:
        return call()
    except (UserError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        here = pathlib.Path(path).resolve()
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename).resolve() == here]
        raise UserError(f"{path}:{lines[-1]}: {_told(error)}") from error


def _told(error: Exception) -> str:
    """What went wrong; of a field that a ConfigDict does not have, without the dictionary that it prints."""
    unknown = re.search(r'Key "(\w+)" does not exist', str(error))
    meant = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(error))
    if meant:
        return f"config has no field {meant[2]}; did you mean {meant[1]}?"
    if unknown:
        return f"config has no field {unknown[1]}; configs/common.py lists the fields, and a mixture is assigned whole"
    return f"{type(error).__name__}: {error}"
