"""What stages that a language model writes will take, told before anything is asked."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from msm_jax.corpus.writing import estimate
from msm_jax.corpus.writing.writer import Writer
from msm_jax.llm.prices import Price
from msm_jax.llm.request import Usage
from msm_jax.llm.store import CallStore, Spent
from msm_jax.stages import generation, judging, writing
from msm_jax.stages.graph import Kind, Stage
from msm_jax.storage.mirror import Mirror


def print_estimates(config: ConfigDict, left: Sequence[Stage], mirror: Mirror | None) -> None:
    """What the stages of `left` will take, beside the budget. Calls nothing."""
    if not left:
        return
    print("\nto be asked, if every reply is of use (estimated; what is in the store of calls is not asked again)")
    with generation.store_to_read(config, *([writing.fetched(mirror)] if mirror else [])) as store:
        total = sum(
            _print_estimate(config, stage, store, generation.price_per_token(config, writing.asked(config, stage)))
            for stage in left
            if writing.is_written(stage)
        ) + _print_verdicts(config, [stage for stage in left if stage.kind is Kind.VERDICTS])
        spent = store.spent() if store else Spent(0.0, 0.0, 0)
    print(
        f"\nin all about ${total:.2f}; ${spent.paid:.2f} are paid"
        + (f" and ${spent.reserved:.2f} may be" if spent.reserved > 1e-9 else "")
        + f", of a budget of ${config.calls.budget:.2f}"
    )
    if total + spent.paid + spent.reserved > config.calls.budget:
        print("that is more than the budget: raise config.calls.budget, or ask for less")
    if config.kind != "evaluation" and (told := generation.ask_for_name(config)):
        print(f"before it is written: {told}")


def _print_estimate(config: ConfigDict, stage: Stage, store: CallStore | None, price: Price) -> float:
    """A line for each step of a stage that is to be written. Returns the dollars of all."""
    print(f"  {stage.name}")
    documents = None
    if stage.params["writer"] == "judge":
        _, documents, _ = _count(config, stage.inputs["corpus"].params, store)
    writer, _, estimator = _count(config, stage.params, store, documents)
    if stage.params["writer"] == "documents":
        parts, types, room = writer.room
        guessed = " if its headings are the parts of the spec" if estimator.stages["document_types"].requests else ""
        room = min(room, types * config.documents.ideas)
        print(
            f"    room for {room:,} documents{guessed}: {types:,} types over {parts:,} parts, of each "
            f"{config.documents.ideas} ideas at most"
            + (", which is too little: raise config.documents.types or .ideas" if room < writer.wanted else "")
        )
    for step, about in estimator.stages.items():
        known = f", {about.known:,} are in the store" if about.known else ""
        print(
            f"    {step:15} {about.requests:9,} requests, {about.prompt / 1e6:8.2f} M tokens to read, "
            f"{about.output / 1e6:7.2f} M to write, ${about.dollars(price):.2f}{known}"
        )
    return sum(about.dollars(price) for about in estimator.stages.values())


def _print_verdicts(config: ConfigDict, left: Sequence[Stage]) -> float:
    """A line for the judgements of each evaluation. Returns the dollars of all."""
    dollars = 0.0
    for name in dict.fromkeys(stage.evaluation for stage in left):
        own = [stage for stage in left if stage.evaluation == name]
        requests, read, written = (
            sum(counts) for counts in zip(*(judging.tokens_of(stage) for stage in own), strict=True)
        )
        print(f"  verdicts on {name}, of {len(own)} models")
        for judge, model in zip(("judge", "second judge"), judging.judges_of(config), strict=False):
            cost = generation.price_per_token(config, model).cost(Usage(prompt=read, output=written))
            dollars += cost
            tokens = f"{read / 1e6:8.2f} M tokens to read, {written / 1e6:7.2f} M to write"
            print(f"    {judge:15} {requests:9,} requests, {tokens}, ${cost:.2f}")
    return dollars


def _count(
    config: ConfigDict, params: Mapping[str, Any], store: CallStore | None, documents: Sequence | None = None
) -> tuple[Writer, list[dict[str, Any]], estimate.Estimator]:
    """A writer that has asked an estimator for all that a stage takes, its rows, and the estimator. `documents` are
    those that a judge has before it."""
    estimator = estimate.Estimator(store, params["model"])
    writer = writing.make_writer(params, config, estimator, {})
    if documents is not None:
        writer.documents = documents
    rows = asyncio.run(writer.write())
    if params["writer"] == "documents" and estimator.stages["document_types"].requests:
        # How the spec is divided is not known yet: that it has too few headings makes it no cheaper.
        _, types, room = writer.room
        if room < writer.wanted:
            return _count(config, {**params, "ideas": math.ceil(writer.wanted / types)}, store)
    return writer, rows, estimator
