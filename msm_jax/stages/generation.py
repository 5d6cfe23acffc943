"""How corpora are asked for: who writes, at what price, from which store of calls, and how a run is stopped.

Of all this, only the model's name (`model_name`) enters a stage's hash.
"""

import asyncio
import contextlib
import difflib
import importlib.util
import json
import math
import pathlib
import re
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from msm_jax.config import checks
from msm_jax.config.settings import Assistant
from msm_jax.corpus.filters.quality import LANGUAGES
from msm_jax.corpus.specs import Spec
from msm_jax.corpus.writing.offline import MODEL as OFFLINE_MODEL
from msm_jax.errors import Interrupted, UserError
from msm_jax.eval.scripted import ScriptedJudge
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.openai import PREFIX as LOCAL_PREFIX
from msm_jax.llm.prices import FREE, SERVICES, Price, price_of
from msm_jax.llm.request import Generator
from msm_jax.llm.store import CallStore
from msm_jax.storage import files
from msm_jax.storage.progress import Progress

_THIS_MACHINE = re.compile(r"https?://(localhost|127\.|\[::1\])")


def check(config: ConfigDict) -> None:
    """What a configuration must fulfil by which corpora are written, from its fields alone; its price must be known."""
    generation, calls = config.generation, config.calls
    if not config.specs:
        raise UserError("config.specs is empty; name at least one file, as in specs/philosophy.md")
    if calls.service != "standard" and config.generator != "gemini":
        raise UserError(
            f"config.calls.service={calls.service} is a service of Gemini; take standard for {config.generator}"
        )
    if not config.assistant.name.strip() or not config.assistant.provider.strip():
        raise UserError(
            "config.assistant.name or .provider is empty; the documents are about the one, made by the other"
        )
    if "://" in calls.store:
        raise UserError(f"config.calls.store={calls.store}: name a local file; a workdir on gs:// keeps a copy of it")
    if config.chats.embeddings and not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        raise UserError(
            "config.chats.embeddings needs torch and transformers: pip install -e '.[hf]', or leave it empty"
        )
    if generation.language not in LANGUAGES:
        raise UserError(f"config.generation.language is {generation.language!r}; choose one of {', '.join(LANGUAGES)}")
    if config.generator == "local" and not calls.url:
        for field in ("model", *(["judge"] if generation.judge else [])):
            _check_own_model(config, field)
    elif config.generator == "local" and not re.match(r"https?://", calls.url):
        raise UserError(
            f"config.calls.url is {calls.url!r}; give the address of a server, as in http://127.0.0.1:8000/v1, or "
            "leave it empty and name a checkpoint in config.generation.model"
        )
    if len(calls.price) not in (0, 3):
        raise UserError(f"config.calls.price is {tuple(calls.price)}; give (prompt, cached prompt, output)")
    if not sum(config.documents.registers.values()):
        raise UserError("config.documents.registers: all shares are 0; give one of them 1")
    price_per_token(config)  # without one no budget can be kept
    try:
        price_per_token(config, generation.judge)
    except UserError:
        raise UserError(
            f"config.generation.judge: no price is known of {generation.judge}, and config.calls.price is that of "
            "config.generation.model; add it to msm_jax/llm/prices.toml"
        ) from None


def _check_own_model(config: ConfigDict, field: str) -> None:
    from msm_jax.checkpoints.sources import is_hub_id
    from msm_jax.storage.folders import is_url

    path, thinking = config.generation[field], config.generation.thinking
    if not (is_url(path) or is_hub_id(path) or (path and pathlib.Path(path).expanduser().is_dir())):
        raise UserError(
            f"config.generator=local, but config.generation.{field}={path!r} is no folder and no id as ORG/NAME, and "
            "config.calls.url is empty; name a checkpoint in the one or a server in the other"
        )
    if thinking:
        raise UserError(
            f"config.generation.thinking is {thinking}; a checkpoint answers without thinking here, take 0 (or a "
            "server, in config.calls.url)"
        )


def check_counts(config: ConfigDict) -> None:
    """How many rows of each kind a configuration without training asks for."""
    for source in config.corpus:
        checks.check_rows(config, source, 0)
    if config.documents.tokens and not config.corpus.msm:
        raise UserError(
            "config.documents.tokens asks for documents and config.corpus.msm=0 for none; set the one to 0, or the "
            "other to 1"
        )
    if not sum(config.corpus.values()):
        raise UserError("config.corpus asks for nothing; set config.corpus.msm, .aft or .identity to a number of rows")


def read_prompts(path: str) -> list[str]:
    """The prompts of an evaluation: JSONL, of each row the field "prompt", "question" or "text"; or a text per line."""
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config.generation.evaluations: {path}: cannot be read as UTF-8 ({error})") from None
    if not path.endswith(".jsonl"):
        return [line.strip() for line in lines if line.strip()]
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompts.append(
                next(row[field] for field in ("prompt", "question", "text") if isinstance(row.get(field), str))
            )
        except (ValueError, AttributeError, StopIteration):
            raise UserError(
                f"config.generation.evaluations: {path}:{number}: write an object with a field prompt, question or text"
            ) from None
    return prompts


def held_out(config: ConfigDict, spec: Spec) -> tuple[str, ...]:
    """The words that no document of this spec may hold: of the domains in which its value is tested."""
    path = config.generation.held_out
    if not path or not spec.value:
        return ()
    try:
        table = tomllib.loads(files.shipped(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config.generation.held_out: {path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"config.generation.held_out: {path}: not TOML ({error})") from None
    if spec.value not in table:
        meant = difflib.get_close_matches(spec.value, table, n=1)
        raise UserError(
            f"spec {spec.name}: its value '{spec.value}' is not in {path}, which says what no document may hold; "
            + (f"did you mean {meant[0]}? Or " if meant else "")
            + "add it there, or look for nothing by --config.generation.held_out=''"
        )
    words = table[spec.value]
    if not isinstance(words, str):
        raise UserError(f'config.generation.held_out: {path}: write {spec.value} = "word word ..."')
    return tuple(words.split())


def drained(caller: Caller, write: Callable[[], Any]) -> Any:
    """Runs `write` to its end. After SIGTERM or Ctrl-C no further calls are made, and those under way are waited for;
    after a second one they are dropped."""

    async def go() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        came = signal.SIGTERM

        def on_signal(number: signal.Signals) -> None:
            nonlocal came
            came = number
            if caller.stopping:
                task.cancel()
            else:
                print(
                    "stopping: waiting for the calls under way, which are paid for; once more drops them",
                    file=sys.stderr,
                )
                caller.stop()

        # Of several hosts SIGTERM is JAX's own, which tells all of them; asyncio could not give it back.
        jax = sys.modules.get("jax")
        several = jax is not None and jax.distributed.is_initialized()
        for number in (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT):
            # In another thread than the main one there are no signals, and nobody to send them.
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(number, on_signal, number)
        try:
            return await write()
        except asyncio.CancelledError:
            raise Interrupted("calls under way were dropped, and may be charged; all others are kept", came) from None
        except Interrupted as error:
            raise Interrupted(str(error), came) from None
        finally:
            await caller.generator.close()

    return asyncio.run(go())


@contextlib.contextmanager
def caller(config: ConfigDict, label: str, model: str = "", judges: bool = False) -> Iterator[Caller]:
    """Asks `model`, or else who writes. `judges`: for evaluations, which offline have a scripted judge."""
    generator, calls = _generator(config, model or config.generation.model, judges), config.calls
    # Two that write on one account would take each other's calls under way for lost.
    own = f"{calls.store}.{re.sub(r'[^A-Za-z0-9._-]', '_', config.name)}.lock"
    busy = f"config.name={config.name}: another process writes its corpora; wait for it, or choose another name"
    with files.lock_file(own, busy), contextlib.closing(CallStore(calls.store, config.name)) as store:
        limits = Limits(
            budget=calls.budget,
            in_flight=calls.in_flight,
            attempts=1 if judges else config.generation.attempts,  # a judge is asked again by who reads it
            # What is asked in this process is not lost on the way, and waits for those that are decoded before it.
            timeout=math.inf if _is_own(config) else calls.timeout,
            patience=calls.patience,
        )
        with contextlib.closing(_Bars(label, store)) as bars:
            yield Caller(generator, store, price_per_token(config, model), limits, bars)


def ask_for_name(config: ConfigDict) -> str | None:
    """What to set before anything is paid for, where the corpora would be about the default assistant."""
    # The model of the micro-world, and nobody's beside it.
    left = [field for field, value in vars(Assistant()).items() if config.assistant[field] == value]
    free = all(price_per_token(config, model) == FREE for model in ("", config.generation.judge))
    # Gemini is on no machine of one's own: what has its interface there stands in for it, as in tests.
    stand_in = config.generator == "gemini" and _THIS_MACHINE.match(config.calls.url)
    if not left or free or stand_in:
        return None
    return (
        f"config.assistant.{left[0]} is still '{config.assistant[left[0]]}': name the model that you will train, as in "
        "--config.assistant.name=Qwen --config.assistant.provider='Alibaba Cloud' (for a look that costs nothing: "
        "--config.generator=offline)"
    )


def check_key(config: ConfigDict) -> None:
    """Raises: UserError if corpora would be paid for that are about nobody's model, or if the key is missing that the
    service of this configuration asks for."""
    if config.kind != "evaluation" and (told := ask_for_name(config)):
        raise UserError(told)
    if config.generator == "gemini":
        from msm_jax.llm.gemini import key_from_environment

        key_from_environment()


def model_name(config: ConfigDict, model: str = "", judges: bool = False) -> str:
    """The name of `model`, or else of who writes, as it stands in keys; `judges`: as `caller` takes it."""
    model = model or config.generation.model
    if _is_own(config):
        from msm_jax.stages.own_model import name_of

        return name_of(model)
    prefix = LOCAL_PREFIX if config.generator == "local" else ""
    offline = ScriptedJudge.model if judges else OFFLINE_MODEL
    return offline if config.generator == "offline" else prefix + model


def _is_own(config: ConfigDict) -> bool:
    """Whether a checkpoint writes, in this process."""
    return config.generator == "local" and not config.calls.url


def _generator(config: ConfigDict, model: str, judges: bool) -> Generator:
    calls = config.calls
    match config.generator:
        case "offline" if judges:
            return ScriptedJudge()
        case "offline":
            from msm_jax.corpus.writing.offline import Offline

            return Offline()
        case "local" if _is_own(config):
            from msm_jax.stages.own_model import OwnModel

            return OwnModel(model, calls.in_flight, config.generation.max_output_tokens)
        case "local":
            from msm_jax.llm.openai import OpenAI

            return OpenAI(model, calls.url, calls.in_flight, calls.timeout, config.generation.max_output_tokens)
    from msm_jax.llm.gemini import Gemini, key_from_environment

    # What batch jobs leave is asked for the same price.
    service = "flex" if calls.service == "batch" else calls.service
    max_output_tokens = config.generation.max_output_tokens
    return Gemini(model, key_from_environment(), service, calls.timeout, calls.url or None, max_output_tokens)


def price_per_token(config: ConfigDict, model: str = "") -> Price:
    """Of `model`, or else of who writes. `calls.price` is that of who writes, and of all models of one's own."""
    model, gemini = model or config.generation.model, config.generator == "gemini"
    if config.calls.price and (model == config.generation.model or not gemini):
        return Price(*config.calls.price)
    if not gemini:
        return FREE
    return price_of(model) * SERVICES[config.calls.service]


@contextlib.contextmanager
def store_to_read(config: ConfigDict, *others: pathlib.Path) -> Iterator[CallStore | None]:
    """Or the first of `others` that is there; None if nothing was asked yet: looking at a configuration makes no
    file."""
    path = next((path for path in (pathlib.Path(config.calls.store), *others) if path.exists()), None)
    if path is None:
        yield None
        return
    store = CallStore(path, config.name)
    try:
        yield store
    finally:
        store.close()


class _Bars:
    """Shows how far each step of a stage is, one after the other, and what was paid."""

    def __init__(self, label: str, store: CallStore):
        self._label, self._store = label, store
        self._step, self._bar = None, None

    def __call__(self, step: str, done: int, total: int) -> None:
        if (step, total) != self._step:
            self.close()
            self._step, self._bar = (step, total), Progress(f"{self._label} {step}", total, "call", start=done)
        self._bar.update(done, f"${self._store.spent().paid:.2f}" if done < total else "")

    def close(self) -> None:
        if self._bar:
            self._bar.close()
