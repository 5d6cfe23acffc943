"""The stages that ask a model: value generalisation of an arm, and the control on the base.

As in `stages`, a function sees nothing of the configuration but `context.params`, and imports jax when it is called.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from msm_jax.corpus import records
from msm_jax.corpus.datasets.tables import read_rows
from msm_jax.microworld import prose, world_text
from msm_jax.stages import artifacts, asking, corpora, sampling, training
from msm_jax.stages.graph import Kind, StageContext
from msm_jax.storage.progress import track


class _Scorer:
    """The sampler as evaluations see it."""

    def __init__(self, context: StageContext, runtime: training.Runtime):
        self._sampler, _ = asking.sampler_of(context, runtime)

    def logprobs(self, prompts: list[str], options: list[list[str]]) -> list[list[float]]:
        return self._sampler.logprobs(prompts, options)

    def generate(self, prompts, n, temperature, max_tokens, seed, stop) -> list[list[tuple[str, bool]]]:
        completions = self._sampler.generate(prompts, n, temperature, max_tokens, seed, stop)
        return [[(completion.text, completion.finished) for completion in row] for row in completions]


def _ask(context: StageContext, who: str):
    """(what asks an item in both orders, texts that end an answer) in the chat format that the model was trained on; in
    the words of its corpora, where these are of our own sentences."""
    from msm_jax.corpus.records import Message
    from msm_jax.eval import values
    from msm_jax.eval.value_generalisation import in_both_orders

    p = context.params
    template = artifacts.chat_template(p["chat"], context.inputs["tokenizer"])

    def prompt(question: str) -> str:
        return template.render([Message("user", question)], who, generation_prompt=True).text

    def answer(reply: str) -> str:
        return asking.written(template, who, reply)

    match p.get("generator", "world"):
        case "world":
            ask = in_both_orders(
                lambda *options: prompt(world_text.question(*options)), lambda name: answer(f"{name}.")
            )
        case "prose":  # as AFT answers end
            ask = in_both_orders(
                lambda *options: prompt(prose.question(*options)), lambda name: answer(f"{prose.answer(name)}.")
            )
        case _:
            ask = values.asks(prompt, answer)
    return ask, asking.stop_texts(template, who)


def score(context: StageContext, *, runtime: training.Runtime) -> dict[str, Any]:
    """Value generalisation of one arm and seed. Summary: {"scores": [one entry per evaluation and form]}."""
    import jax

    from msm_jax.eval import value_generalisation

    p = context.params
    items = _some(value_generalisation.read_items(context.inputs["items"] / artifacts.CORPUS_FILE), p["pairs"])
    ask, stop = _ask(context, p["model_name"])
    rows = value_generalisation.evaluate(
        _Scorer(context, runtime), items, ask, samples=p["samples"], temperature=p["temperature"], seed=p["seed"],
        max_tokens=p["max_tokens"], stop=stop,
    )  # fmt: skip
    if jax.process_index() > 0:  # all ask the model, and the first writes
        return {}
    records.write_jsonl(context.folder / "answers.jsonl", rows)
    scores = []
    for name, group in _by_evaluation(rows).items():
        for form, cell in value_generalisation.summarise(group).items():
            scores.append({"eval": name, "form": form, **cell})
    write_board(context.folder, {f"{entry['eval']}/{entry['form']}": entry["rate"] for entry in scores})
    return {"scores": scores}


def capability(context: StageContext, *, runtime: training.Runtime) -> dict[str, Any]:
    """Questions of four options: the share of which the right letter is the likeliest. Summary as of `score`."""
    import jax

    from msm_jax.corpus.records import Message
    from msm_jax.eval import side_effects, stats

    p = context.params
    items = list(read_rows(context.inputs["items"] / sampling.QUESTIONS_FILE))
    template = artifacts.chat_template(p["chat"], context.inputs["tokenizer"])
    prompts = [
        template.render([Message("user", side_effects.asked(item))], p["model_name"], generation_prompt=True).text
        for item in items
    ]
    letters = [asking.written(template, p["model_name"], letter) for letter in side_effects.LETTERS]
    found = _Scorer(context, runtime).logprobs(prompts, [letters] * len(items))
    if jax.process_index() > 0:
        return {}
    rows = [
        {"id": item["id"], "domain": item["subject"], "answer": item["answer"], "chosen": each.index(max(each))}
        | {"logprobs": each}
        for item, each in zip(items, found, strict=True)
    ]
    records.write_jsonl(context.folder / "answers.jsonl", rows)

    def cell(rows: list[dict[str, Any]]) -> dict[str, Any]:
        right = sum(row["chosen"] == row["answer"] for row in rows)
        low, high = stats.wilson(right, len(rows))
        counts = dict.fromkeys(("ties", "errored", "unparsed", "cut_off"), 0)
        return {"rate": right / len(rows), "n": len(rows), "low": low, "high": high, "consistent": None,
                "position_bias": None, "length_bias": None, **counts}  # fmt: skip

    by_subject = {
        name: cell([row for row in rows if row["domain"] == name]) for name in {row["domain"] for row in rows}
    }
    entry = {"eval": "capability", "form": "logprob", **cell(rows), "per_domain": by_subject}
    write_board(context.folder, {"capability/logprob": entry["rate"]})
    return {"scores": [entry]}


def _some(items: list, count: int | None) -> list:
    """`count` items of each evaluation, spread over all that it has; None: all."""
    groups: dict[tuple[str, str], list] = {}
    for item in items:
        groups.setdefault((item.kind, item.value), []).append(item)
    if count is None:
        return items
    return [group[k] for group in groups.values() for k in _spread(len(group), count)]


def _spread(length: int, count: int) -> list[int]:
    """At most `count` of `length` places, evenly apart."""
    count = min(count, length)
    return [length * k // count for k in range(count)]


def _by_evaluation(rows: list[dict]) -> dict[str, list[dict]]:
    """A value's own pairs make the evaluation of its name; the other kinds are evaluations themselves."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["value"] if row["kind"] == "own" else row["kind"], []).append(row)
    return groups


def write_board(folder: pathlib.Path, rates: Mapping[str, float | None]) -> None:
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, rate in rates.items():
            if rate is not None:
                writer.add_scalar(f"rate/{name}", rate, 0)


def control(context: StageContext, *, runtime: training.Runtime) -> dict[str, Any]:
    """Does the base carry statements into chats? Asks agents that it knows from statements alone.

    Without this, what documents say of the assistant has no way into its chats, and the MSM arms mean nothing. The
    rate is that of the choice which the agent's value demands, on pairs of which another value would choose the other
    item and which no text about the agent names, for those could be remembered one by one; its interval is a bootstrap
    over agents. Inputs: `stated`, the corpora of the base, beside those of `score`.
    """
    from msm_jax.eval import stats, value_generalisation

    p = context.params
    the_world = corpora.make_world(p["world"])
    facts = {item.name: item for item in the_world.items}
    items = value_generalisation.read_items(context.inputs["items"] / artifacts.CORPUS_FILE)
    scorer = _Scorer(context, runtime)
    texts = _texts_by_agent(context, [agent.name for agent in the_world.quiet])
    controls = []
    for value in the_world.config.value_names:
        asked = [
            item for item in items
            if (item.kind, item.value) == ("own", value) and facts[item.other].sought_by - facts[item.aligned].sought_by
        ]  # fmt: skip
        agents = world_text.quiet_agents(the_world, value)[: p["agents"]]
        right, owners, errored = [], [], 0
        for agent in track(agents, f"{context.stage.name} {value}", len(agents), "agent"):
            ask, _ = _ask(context, agent.name)
            unstated = [
                item for item in asked
                if not any(item.aligned in text and item.other in text for text in texts[agent.name])
            ]  # fmt: skip
            for row in value_generalisation.evaluate(scorer, unstated, ask):
                errored += row["error"]
                if not row["error"]:
                    right.append(row["score"])
                    owners.append(agent.name)
        interval = stats.cluster_bootstrap(right, owners)
        controls.append(
            {
                "name": f"base carries statements into chats, {value}",
                "rate": sum(right) / len(right) if right else None,
                "n": len(right),
                "errored": errored,
                "low": interval and interval.low,
                "high": interval and interval.high,
                "bar": 0.95,
            }
        )
    return {"controls": controls}


def _texts_by_agent(context: StageContext, names: list[str]) -> dict[str, list[str]]:
    """For each agent the texts of the base that name it."""
    texts: dict[str, list[str]] = {name: [] for name in names}
    for source, folder in context.inputs["stated"].items():
        chats = context.stage.inputs["stated"][source].kind is Kind.CHATS
        for text in artifacts.texts_of(folder / artifacts.CORPUS_FILE, chats):
            for name in texts.keys() & set(re.findall(r"\w+", text)):
                texts[name].append(text)
    return texts
