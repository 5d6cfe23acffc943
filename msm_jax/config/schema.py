"""What a class of settings is made of, and what is made from it: a `ConfigDict`, and checks.

A class is a dataclass whose fields are declared by `setting`: a default, a sentence, and the values that the field may
have. Groups of fields are classes too. msm_jax/config/settings.py has them all.
"""

import dataclasses
import math
import types
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_origin

from ml_collections import ConfigDict, config_dict

from msm_jax.config.reading import lacking, nearest
from msm_jax.errors import UserError


class Range(NamedTuple):
    """The numbers from `low` to `high`, without the ends that are `open`. A number above `most` is a slip of the hand:
    it would never end, or fill any memory."""

    low: float
    high: float = math.inf
    open: str = ""  # "(" without the low end, ")" without the high one
    most: int | None = None

    def __str__(self) -> str:
        return self._ends + (f", at most {self.most:,}" if self.most else "")

    @property
    def _ends(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}" if "(" in self.open else f"{self.low:g} or more"
        start = f"above {self.low:g}" if "(" in self.open else f"from {self.low:g}"
        return f"{start} to {'below ' if ')' in self.open else ''}{self.high:g}"

    def fault(self, value: float) -> str:
        if self.most and value > self.most:
            return f"it must be at most {self.most:,}"
        fits = self.low < value if "(" in self.open else self.low <= value
        fits &= value < self.high if ")" in self.open or self.high == math.inf else value <= self.high
        return "" if fits else f"it must be {self._ends}"


class Choice(tuple):
    """One of some words."""

    def __str__(self) -> str:
        return ", ".join(f"`{name}`" if name else "nothing" for name in self)

    def fault(self, value: str) -> str:
        return "" if value in self else f"choose one of {', '.join(name or 'nothing' for name in self)}"


def setting(default: Any, about: str, within: Range | Choice | None = None) -> Any:
    """A field of the classes below. A default of None leaves it open, and its type says what it may be set to."""
    more = {"metadata": {"about": about, "within": within}}
    if dataclasses.is_dataclass(default) or isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: default, **more)
    return dataclasses.field(default=default, **more)


class Setting(NamedTuple):
    """`name` is dotted; `type` is int, tuple[str, ...], dict[str, float] or the like, `optional` if it may be None."""

    name: str
    type: Any
    optional: bool
    default: Any
    about: str
    within: Range | Choice | None


def settings(kind: type, prefix: str = "") -> Iterator[Setting]:
    """All fields of one of the classes above, groups resolved."""
    for field in dataclasses.fields(kind):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        yield from _of_field(field, default, prefix)


def _of_field(field: dataclasses.Field, default: Any, prefix: str) -> Iterator[Setting]:
    name = f"{prefix}{field.name}"
    if dataclasses.is_dataclass(default):
        for inner in dataclasses.fields(default):
            yield from _of_field(inner, getattr(default, inner.name), f"{name}.")
        return
    options = [option for option in get_args(field.type) if option is not types.NoneType]
    optional = isinstance(field.type, types.UnionType)
    yield Setting(name, options[0] if optional else field.type, optional, default, **field.metadata)


def defaults(kind: type) -> ConfigDict:
    """The defaults, as a file in configs/ starts from."""

    def filled(group: Any) -> ConfigDict:
        config = ConfigDict()
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if dataclasses.is_dataclass(value):
                value = filled(value)
            elif value is None:
                value = config_dict.placeholder(get_args(field.type)[0])
            config[field.name] = value
        return config

    return filled(kind())


def check(config: ConfigDict, kind: type) -> None:
    """Each field by itself. Raises: UserError that names the first which is lacking, unknown, or not what it may be."""
    known = {known.name: known for known in settings(kind)}
    values = _leaves(config, known)
    for name in values:
        if name not in known:
            meant = nearest(name, known)
            raise UserError(f"config has no field {name}; {f'did you mean {meant}?' if meant else 'delete it'}")
    for name, one in known.items():
        if name not in values:
            raise lacking(name)
        _check_value(one, values[name])


def _leaves(config: ConfigDict, known: dict[str, Setting], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, where a mapping that is one setting (a mixture) stays whole."""
    leaves = {}
    for name, value in config.items():
        name = f"{prefix}{name}"
        if any(other.startswith(f"{name}.") for other in known):
            if not isinstance(value, ConfigDict):
                raise UserError(f"config.{name} is {value!r}; it must be a group of fields")
            leaves |= _leaves(value, known, f"{name}.")
        else:
            leaves[name] = value
    return leaves


def show(config: ConfigDict, kind: type) -> None:
    """Prints each field, its value, and what it is."""
    print("configuration")
    values = _leaves(config, known := {known.name: known for known in settings(kind)})
    lines = [(f"  {name} = {_plain(value)!r}", known[name].about) for name, value in values.items()]
    width = min(44, max(len(line) for line, _ in lines))
    for line, about in lines:
        print(f"{line:{width}}  # {about}")


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value


_TOLD = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    tuple[str, ...]: "a tuple of texts",
    tuple[int, ...]: "a tuple of whole numbers",
    tuple[float, ...]: "a tuple of numbers",
}


def _check_value(one: Setting, value: Any) -> None:
    field = f"config.{one.name}"
    if value is None:
        if one.optional:
            return
        raise UserError(f"{field} is none; give it a value")
    if get_origin(one.type) is dict:
        if not isinstance(value, ConfigDict):
            raise UserError(f"{field} is {value!r}; it must be a group of fields")
        return
    if not _is_a(one.type, value):
        raise UserError(f"{field} is {_plain(value)!r}; it must be {_TOLD[one.type]}")
    for part in value if isinstance(value, tuple | list) else [value]:
        if one.within and (fault := one.within.fault(part)):
            raise UserError(f"{field} is {value!r}; {fault}")


def _is_a(kind: Any, value: Any) -> bool:
    if get_origin(kind) is tuple:
        return isinstance(value, tuple | list) and all(_is_a(get_args(kind)[0], part) for part in value)
    return type(value) in ((int, float) if kind is float else (kind,))
