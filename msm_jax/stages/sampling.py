"""The stage that draws answers: a model is asked each question many times, and every answer that has ended is kept.

Answers are appended as they end, so what a run that was killed has drawn is not drawn again: the random numbers of a
sample depend on (seed, question, its number) alone. As in `scoring`, a function sees nothing of the configuration but
`context.params`.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from msm_jax.corpus import records
from msm_jax.corpus.datasets.tables import read_rows
from msm_jax.stages import asking, training
from msm_jax.stages.graph import StageContext
from msm_jax.storage import files

QUESTIONS_FILE = "questions.jsonl"
TRANSCRIPTS_FILE = "transcripts.jsonl"
_SENT_EVERY = 256  # answers, where the workdir is elsewhere


def draw(context: StageContext, *, runtime: training.Runtime) -> dict[str, Any]:
    """Writes `transcripts.jsonl`, a row for each answer, in the order of the questions when all are there:

        {"id": the question's, "sample": its number from 0, "text": what is said, "thoughts": what is not,
         "unfinished": whether it ends within a thought, "finish": "stop" or "length", "tokens": how many were drawn}
        and, where the question has tools and the chat template knows them, "calls": [{"function", "arguments"}]

    Inputs: `questions`, with `questions.jsonl` ({"id", "messages", ...}); `model`, `base` and `tokenizer`.
    Params: chat, model_name, samples (of each question), temperature, max_tokens, seed.
    Summary: {"answers", "cut_off", "unfinished", "tokens"}.
    """
    import jax

    from msm_jax.data import conversation
    from msm_jax.data.jinja_template import JinjaTemplate
    from msm_jax.parallel.hosts import array_of_first
    from msm_jax.sampler.request import Sampling

    p, first = context.params, jax.process_index() == 0
    questions = list(read_rows(context.inputs["questions"] / QUESTIONS_FILE))
    sampler, template = asking.sampler_of(context, runtime)
    takes_tools = isinstance(template, JinjaTemplate) and template.takes_tools
    tools = [question.get("tools", ()) if takes_tools else () for question in questions]
    texts = [
        conversation.render(template, p["model_name"], question["messages"], own)
        for question, own in zip(questions, tools, strict=True)
    ]
    thinks = conversation.knows_thoughts(sampler.tokenizer, template)
    stop = asking.stop_texts(template, p["model_name"])
    asked = [
        Sampling(p["max_tokens"], p["temperature"], stop=stop, seed=seed_of(p["seed"], question["id"]))
        for question in questions
    ]
    path = context.folder / TRANSCRIPTS_FILE
    drawn = _drawn(path, questions, p["samples"]) if first else np.zeros((len(questions), p["samples"]), bool)
    missing = [np.flatnonzero(~row).tolist() for row in array_of_first(drawn)]

    with _appending(path, context.send) if first else contextlib.nullcontext(lambda row: None) as append:

        def keep(number: int, index: int, completion: Any) -> None:
            opened, own = conversation.opens_thought(texts[number]), bool(tools[number])
            parsed = conversation.parse(completion.text, opened, thinks, own)
            about = {"id": questions[number]["id"], "sample": index, "text": parsed.text, "thoughts": parsed.thoughts}
            if own:
                about["calls"] = [{"function": call.function, "arguments": call.arguments} for call in parsed.calls]
            finish = "stop" if completion.finished else "length"
            append(about | {"unfinished": parsed.unfinished, "finish": finish, "tokens": completion.tokens})

        prompts = [conversation.encode(sampler.tokenizer, template, text) for text in texts]
        sampler.draw(prompts, asked, missing, keep)
    return _finish(path, questions) if first else {}


def write_questions(context: StageContext, *, questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What will be asked, as it is: {"id", "messages", ...}."""
    return {"questions": records.write_jsonl(context.folder / QUESTIONS_FILE, questions)}


def seed_of(seed: int, question: str) -> int:
    """Of a question's samples: they do not depend on which others are asked."""
    return int(files.fingerprint([seed, question], length=15), 16)


def _drawn(path: pathlib.Path, questions: Sequence[Mapping[str, Any]], samples: int) -> np.ndarray:
    """Which answers are there already: bool[questions, samples]."""
    places = {question["id"]: place for place, question in enumerate(questions)}
    drawn = np.zeros((len(questions), samples), bool)
    for row in _rows(path):
        drawn[places[row["id"]], row["sample"]] = True
    return drawn


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Those that were written whole: a kill may have cut off the last."""
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


@contextlib.contextmanager
def _appending(path: pathlib.Path, send: Callable[[], None]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What appends a row, whole, so that a kill costs none of those before."""
    count = 0
    with open(path, "ab") as file:
        if file.tell():
            file.write(b"\n")  # after a line that was cut off; empty lines are no rows

        def append(row: Mapping[str, Any]) -> None:
            nonlocal count
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            count += 1
            if count % _SENT_EVERY == 0:
                send()

        yield append


def _finish(path: pathlib.Path, questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Puts the rows in order; the summary."""
    places = {question["id"]: place for place, question in enumerate(questions)}
    rows = {(places[row["id"]], row["sample"]): row for row in _rows(path)}
    records.write_jsonl(path, (rows[key] for key in sorted(rows)))
    found = rows.values()
    return {
        "answers": len(found),
        "cut_off": sum(row["finish"] == "length" for row in found),
        "unfinished": sum(row["unfinished"] for row in found),
        "tokens": sum(row["tokens"] for row in found),
    }
