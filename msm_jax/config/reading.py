"""Reads an experiment's configuration: a Python file, a variant of it, and overrides from the command line.

`FILE[:ARG]` is a Python file whose `get_config()` or `get_config(ARG)` returns an `ml_collections.ConfigDict`. The
override syntax is that of `ml_collections.config_flags`. It is read here because there a mistyped field ends in a
traceback, and here it ends in one line that names the field that was probably meant.
"""

import ast
import contextlib
import difflib
import importlib.util
import inspect
import pathlib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from msm_jax.errors import UserError
from msm_jax.storage import files

# What other programs call a field: its name here, and theirs.
_ALIASES = {
    "learning_rate": "lr max_lr peak_lr base_lr",
    "weight_decay": "wd decay l2",
    "epsilon": "eps adam_eps adam_epsilon",
    "beta1": "adam_beta1 b1",
    "beta2": "adam_beta2 b2",
    "clip_norm": "clip grad_clip clip_grad gradient_clip max_grad_norm grad_norm gradient_clipping",
    "warmup_fraction": "warmup warmup_ratio warmup_steps num_warmup_steps",
    "final_fraction": "min_lr min_lr_ratio lr_min",
    "batch_size": "bs bsz batch mbs global_batch_size train_batch_size per_device_train_batch_size",
    "accumulation": "accum grad_accum accumulate gradient_accumulation gradient_accumulation_steps",
    "steps": "epochs epoch num_epochs num_train_epochs n_epochs max_steps num_steps train_steps iters iterations",
    "row_length": "max_len max_length maxlen seq_len seq_length seqlen max_seq_len max_seq_length sequence_length "
    "context_length ctx ctx_len block_size n_ctx",
    "rank": "r lora_r lora_rank lora_dim",
    "alpha": "lora_alpha",
    "targets": "target_modules lora_targets modules",
    "width": "hidden_size d_model dim n_embd hidden embed_dim",
    "mlp_width": "intermediate_size ffn d_ff ffn_dim mlp_dim mlp_size",
    "num_layers": "layers n_layer n_layers num_hidden_layers depth",
    "num_heads": "heads n_head n_heads num_attention_heads",
    "num_kv_heads": "kv_heads n_kv_heads num_key_value_heads",
    "head_size": "head_dim d_head",
    "norm_epsilon": "rms_norm_eps norm_eps",
    "tied_head": "tie_word_embeddings tie_embeddings tied",
    "dtype": "precision torch_dtype bf16 fp16",
    "vocab_size": "vocab n_vocab",
    "seeds": "seed random_seed",
    "temperature": "temp",
    "max_tokens": "max_new_tokens max_output_tokens",
    "every": "save_every save_steps save_interval eval_steps logging_steps log_steps log_interval",
    "keep": "save_total_limit max_to_keep",
    "remat": "gradient_checkpointing checkpointing activation_checkpointing recompute",
    "path": "model_name_or_path model_path base_model model_name",
    "budget": "max_cost max_dollars",
    # Names of earlier versions.
    "max_similarity": "most_alike",
    "max_overlap": "most_overlap",
    "min_yield": "least_yield",
    "max_output_tokens": "most_output",
    "in_flight": "concurrency max_concurrency workers num_workers",
}
_QUOTES = "\"'"
_MEANT = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}


def load(path_with_arg: str, overrides: Sequence[tuple[str, str]] = ()) -> config_dict.ConfigDict:
    """Calls `get_config` of the file and applies the overrides.

    Args:
        path_with_arg: "configs/NAME.py" or "configs/NAME.py:ARG"; of those of the package, NAME is enough.
        overrides: (dotted field, value as typed), in order; of two for one field the last wins.

    Returns:
        The configuration, locked: no field can be added to it.

    Raises:
        UserError: no such file, an error in it, a bad variant, an unknown field, a value of the wrong type.
    """
    path, colon, variant = path_with_arg.partition(":")
    if colon and not variant:
        raise UserError(f"--config={path_with_arg}: names no variant after the colon; leave it out, or name one")
    path = _found(path)
    module = _import_file(path)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"{path}: has no get_config(); a config file defines it and returns a ConfigDict")
    arguments = (variant,) if variant else ()
    try:
        inspect.signature(module.get_config).bind(*arguments)
    except TypeError:
        demand = f"takes no variant, and ':{variant}' is given" if variant else "needs a variant: --config=FILE:VARIANT"
        raise UserError(f"{path}: get_config {demand}") from None
    config = _in_file(path, lambda: module.get_config(*arguments))
    if not isinstance(config, config_dict.ConfigDict) or isinstance(config, config_dict.FrozenConfigDict):
        raise UserError(f"{path}: get_config returned {type(config).__name__}, not an ml_collections.ConfigDict")
    for field, text in overrides:
        override(config, field, text)
    for field, value in flatten(config).items():
        if not _is_plain(value):
            raise UserError(
                f"{path}: config.{field} is {type(value).__name__} {value!r}; a field holds text in UTF-8, a number, "
                "True, False, None, or a tuple of these"
            )
    return config.lock()


@contextlib.contextmanager
def lacking_told() -> Iterator[None]:
    """A field that a ConfigDict is asked for and lacks, as a UserError: files need not begin with configs/common.py."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        if "ml_collections" not in traceback.extract_tb(error.__traceback__)[-1].filename:
            raise
        raise lacking(str(error).strip(_QUOTES)) from error


def lacking(field: str) -> UserError:
    return UserError(f"the configuration lacks the field {field}; begin it with configs/common.py, which has all")


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
    if field == "kind":
        raise UserError("config.kind is what the file makes, and decides which fields there are; choose another file")
    *groups, leaf = field.split(".")
    group = config
    for name in groups:
        group = group[name]
    try:
        group[leaf] = _parse(field, text, group.get_type(leaf), values[field])
    except UserError as error:
        if groups == ["corpus"] and f"data.{leaf}" in values:
            raise UserError(f"{error}; name data that exist in config.data.{leaf}") from None
        raise


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

    Of a dotted name the last part may count for half, so that `rank` finds `model.lora.rank`, and it may be what other
    programs call it: `aft.lr` finds `aft.optim.learning_rate`.
    """
    candidates = list(candidates)
    meant = _MEANT.get(name.split(".")[-1].lower())
    if named := [candidate for candidate in candidates if meant and candidate.split(".")[-1] == meant]:
        name, candidates = ".".join([*name.split(".")[:-1], meant]), named

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.split(".")[-1], candidate.split(".")[-1]).ratio()
        return max(whole, (whole + last) / 2)

    best = max(candidates, key=likeness, default=None)
    return best if best is not None and (named or likeness(best) >= 0.6) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, str):  # what the command line holds in another encoding is not UTF-8; no path has a null
        return value == value.encode(errors="replace").decode() and "\0" not in value
    return value is None or isinstance(value, bool | int | float | config_dict.ConfigDict | Mapping)


def _unknown(field: str, values: Mapping[str, Any]) -> str:
    inside = [name for name in values if name.startswith(f"{field}.")]
    if inside:
        return f"config.{field} is a group of fields; set one of them: {', '.join(inside)}"
    exists = field.replace("corpus.", "data.", 1)
    meant = exists if exists in values else nearest(field, values)
    if (
        meant and _MEANT.get(field.lower(), field) == meant.split(".")[-1]
    ):  # without its group, a name may be that of several
        meant = " or ".join(name for name in values if name.split(".")[-1] == meant.split(".")[-1])
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
        value = _literal(text, None)
        words = kinds == {str} or (not kinds and value is None)  # of an empty one nobody knows of what it is
        if words and not text.startswith(("(", "[")):
            return expected(item.strip() for item in text.split(","))
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


def _found(name: str) -> str:
    """The file that is meant by a path, or by the name of one of the package's own."""
    candidates = (files.shipped(path) for path in (name, f"configs/{name}.py"))
    return next((str(path) for path in candidates if path.is_file()), name)


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
        where = f"{error.filename}:{error.lineno}" if error.lineno else error.filename or path
        raise UserError(f"{where}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        here = pathlib.Path(path).resolve()
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename).resolve() == here]
        raise UserError(":".join(map(str, [path, *lines[-1:]])) + f": {_told(error)}") from error


def _told(error: BaseException) -> str:
    """What went wrong; of a field that a ConfigDict does not have, without the dictionary that it prints."""
    text = str(error)
    meant = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
    unknown = re.search(r'Key "(\w+)" does not exist', text)
    name = meant[2] if meant else unknown and unknown[1]
    if meant or name in _MEANT:
        return f"config has no field {name}; did you mean {_MEANT.get(name) or meant[1]}?"
    if unknown:
        return f"config has no field {name}; docs/config.md lists the fields, and a mixture is assigned whole"
    return f"{type(error).__name__}: {error}"
