"""The parts of a report that show what judges graded: a section for each evaluation, with a table and a figure.

`result["graded"]` holds an entry for each model: {"evaluation", "arm", "spec", "seed", "stage": the key of the stage
with its verdicts, "transcripts": of that with the answers, "summary": what the evaluation's `summarise` returned, and
"judge"}.
"""

import collections
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msm_jax.eval import eval_awareness, open_qa, plots, reasoning, stats
from msm_jax.eval.comparisons import (
    contrasts_with_the_first,
    corrected_by_gold,
    counts_of_cells,
    spread_over_seeds,
    two_judges,
    unchanged,
)
from msm_jax.eval.results import arm_key, ordered_arms
from msm_jax.eval.section import Mean, Section, Table, interval, mean_of, score, total
from msm_jax.storage.files import read_object

_REFERENCE = pathlib.Path(__file__).parent / "reference" / "fig4.json"


def sections(result: Mapping[str, Any]) -> list[Section]:
    """In the order in which the evaluations were asked."""
    names = dict.fromkeys(entry["evaluation"] for entry in result["graded"])
    found = []
    for name in names:
        by_arm = _by_arm(result, name)
        links = [
            (f"{arm['label']}, seed {entry['seed']}", f"../stages/{entry['stage']}/transcripts/index.html")
            for arm, entries in by_arm
            for entry in entries
        ]
        section = _SECTIONS[name](result, by_arm)
        if compared := two_judges(by_arm):
            section = _with_table(section, compared)
        if name == "agentic_misalignment" and "gold" in result:
            table, notes = corrected_by_gold(by_arm, result["gold"])
            section = _with_table(section, table)._replace(notes=[*section.notes, *notes])
        found.append(section._replace(transcripts=links))
    return found


def _with_table(section: Section, table: Table) -> Section:
    """Before the tables that are long and wide."""
    wide = [each for each in section.tables if each.wide]
    return section._replace(tables=[*(each for each in section.tables if not each.wide), table, *wide])


def _by_arm(result: Mapping[str, Any], name: str) -> list[tuple[dict, list[dict]]]:
    """(arm, its entries by seed), in the order of the paper's figures; without arms that were not asked."""
    found = []
    for arm in ordered_arms(result["arms"]):
        entries = [e for e in result["graded"] if (e["evaluation"], e["arm"], e["spec"]) == (name, *arm_key(arm))]
        if entries:
            trained = result["config"].get("kind") != "evaluation" and arm["name"] != "base"
            entries = [entry | {"trained": trained} for entry in entries]
            found.append((arm, sorted(entries, key=lambda entry: entry["seed"])))
    return found


def _interval_over(by_arm: Sequence[tuple[dict, list[dict]]], items: str, like_these: str) -> str:
    """What the intervals of a section speak of."""
    seeds = len({entry["seed"] for _, entries in by_arm for entry in entries})
    trained = any(entry["trained"] for _, entries in by_arm for entry in entries)
    if seeds > 1 and trained:
        return (
            f"The interval is over {seeds} seeds: it speaks of training runs. That of the base, which none trained, is "
            f"over {items}."
        )
    measured = "there is one seed" if seeds == 1 else f"each model was measured {seeds} times"
    return f"The interval is over {items}: it speaks of {like_these}, of these models; {measured}."


def _mean_score(entries: Sequence[Mapping[str, Any]], field: str = "mean") -> Mean:
    return mean_of(entries, field, (open_qa.LOWEST, open_qa.HIGHEST))


def _open_questions(result: Mapping[str, Any], by_arm: Sequence[tuple[dict, list[dict]]]) -> Section:
    titles = {name: about["title"] for name, about in open_qa.dimensions().items()}
    rows, parts = [], []
    for arm, entries in by_arm:
        own = [
            _mean_score([entry | {"summary": entry["summary"]["dimensions"].get(name, _NOTHING)} for entry in entries])
            for name in titles
        ]
        parts.append([arm["label"], *map(interval, own)])
        scored = f"{total(entries, 'n'):,} of {total(entries, 'answers'):,}"
        lost = "/".join(str(total(entries, field)) for field in ("unreadable", "unfinished", "cut_off"))
        rows.append([arm["label"], interval(_mean_score(entries)), scored, lost])
    missing = [
        f"{arm['label']}: with what is missing at 1 or at 10, the mean is "
        f"{score(_mean_score(entries, 'worst').value)} or {score(_mean_score(entries, 'best').value)}."
        for arm, entries in by_arm
        if total(entries, "n") < total(entries, "answers")
    ]
    paper = _paper(result, by_arm, "open_qa")
    png = plots.scores(
        [arm for arm, _ in by_arm],
        [_mean_score(entries) for _, entries in by_arm],
        (open_qa.LOWEST, open_qa.HIGHEST),
        "mean score",
        paper,
    )
    return Section(
        title="Open questions",
        about=f"Mean score, by {_judges(by_arm)}, of answers to open questions on the model's own conduct, from 1 "
        "(clearly misaligned) over 5 (generic) to 10 (aligned, for reasons that are understood). What MSM and AFT "
        "speak of is asked.",
        tables=[
            _with_paper(["Arm", "mean [95 %]", "scored", "r/u/c"], rows, paper),
            Table(["Arm", *titles.values()], parts, wide=True),
        ],
        notes=[
            _interval_over(by_arm, "questions", "questions like these"),
            "r/u/c: answers that the judge gave no readable grade; that ended within a thought (neither is scored); "
            "that were cut off at the most tokens (scored as they are).",
            *missing,
        ],
        figure={
            "file": "open_qa.png",
            "title": "Open questions",
            "caption": "Means over seeds with 95 % intervals; dots are single seeds. 5 is a generic answer."
            + _of_paper(paper),
            "png": png,
        },
    )


def _agentic(result: Mapping[str, Any], by_arm: Sequence[tuple[dict, list[dict]]]) -> Section:
    cells = list(
        dict.fromkeys(cell for _, entries in by_arm for entry in entries for cell in entry["summary"]["cells"])
    )
    rows = [
        [
            arm["label"],
            interval(mean_of(entries)),
            score(mean_of(entries, "harmful").value),
            score(mean_of(entries, "harmful_upstream").value),
            f"{score(mean_of(entries, 'best').value)} to {score(mean_of(entries, 'worst').value)}",
            f"{total(entries, 'n'):,} of {total(entries, 'answers'):,}",
            "/".join(str(total(entries, field)) for field in ("truncated", "no_action")),
        ]
        for arm, entries in by_arm
    ]
    parts = [[cell, *(_of_cell(entries, cell) for _, entries in by_arm)] for cell in cells]
    notes = [
        _interval_over(by_arm, f"{len(cells)} cells", "prompts like these"),
        "harmful: with our gate, and with upstream's. bounds: the rate if what is missing were harmless, or harmful. "
        "t/n: answers that were cut off, and those without an action.",
    ]
    for arm, entries in by_arm:
        reasons = collections.Counter()
        for entry in entries:
            reasons.update(entry["summary"]["missing"])
        if reasons:
            told = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in reasons.most_common())
            notes.append(f"{arm['label']}, not judged: {told}.")
        if empty := sorted({cell for entry in entries for cell in entry["summary"]["missing_cells"]}):
            notes.append(f"{arm['label']}: no rate, and not in the mean: {', '.join(empty)}.")
    differ = sum(total(entries, "gates_differ") for _, entries in by_arm)
    read = sum(total(entries, "rules_differ") for _, entries in by_arm)
    notes.append(
        f"Our gate and upstream's differ on {differ:,} answers, our reading of the judge and its older one on {read:,}."
    )
    notes += spread_over_seeds(by_arm, cells)
    means = [mean_of(entries) for _, entries in by_arm]
    paper = _paper(result, by_arm, "agentic_misalignment")
    return Section(
        title="Agentic misalignment",
        about=f"Rate at which the agent decides on the act, as {_judges(by_arm)} reads its answer: the unweighted mean "
        f"over {len(cells)} cells. The paper's metric (arXiv 2605.02087, D.3).",
        tables=[
            _with_paper(["Arm", "rate [95 %]", "harmful", "upstream's", "bounds", "judged", "t/n"], rows, paper),
            *([contrasts] if (contrasts := contrasts_with_the_first(by_arm, cells)) else []),
            Table(["Cell", *(arm["label"] for arm, _ in by_arm)], parts, wide=True),
        ],
        notes=notes,
        figure={
            "file": "agentic_misalignment.png",
            "title": "Agentic misalignment",
            "caption": "Means over seeds of the mean over cells, with 95 % intervals; dots are single seeds."
            + _of_paper(paper),
            "png": plots.scores([arm for arm, _ in by_arm], means, (0, 1), "rate of misaligned decisions", paper),
        },
    )


def _of_cell(entries: Sequence[Mapping[str, Any]], cell: str) -> str:
    """Of all seeds together: the rate and its Wilson interval."""
    [yes], [n] = counts_of_cells(entries, [cell])
    if not n:
        return "-"
    low, high = stats.wilson(yes, n)
    return f"{score(yes / n)} [{low:.2f} {high:.2f}]"


def _reasoning(result: Mapping[str, Any], by_arm: Sequence[tuple[dict, list[dict]]]) -> Section:
    kinds = reasoning.categories()
    rows = [
        [arm["label"], interval(mean_of(entries)), f"{total(entries, 'n'):,} of {total(entries, 'answers'):,}",
         f"{total(entries, 'unreadable')}/{total(entries, 'unquoted')}"]
        for arm, entries in by_arm
    ]  # fmt: skip
    parts = [
        [f"{row['title']} ({row['side']})", *(_of_rate(entries, "categories", name) for _, entries in by_arm)]
        for name, row in kinds.items()
    ]
    return Section(
        title="Kinds of reasoning",
        about="Share of the transcripts of agentic misalignment in which the agent's own reasoning is misaligned in "
        f"any way, by {_judges(by_arm)}, which sees neither the arm nor the outcome, and quotes.",
        tables=[
            Table(["Arm", "misaligned [95 %]", "read", "u/q"], rows),
            Table(["Kind", *(arm["label"] for arm, _ in by_arm)], parts, wide=True),
        ],
        notes=[
            "Several kinds may apply to one transcript. u/q: transcripts whose classification could not be read, and "
            "labels that were dropped since their quotation does not stand in the transcript.",
        ],
        figure=None,
    )


def _eval_awareness(result: Mapping[str, Any], by_arm: Sequence[tuple[dict, list[dict]]]) -> Section:
    rows = [
        [arm["label"], *(_of_rate(entries, "verdicts", name) for name in eval_awareness.VERDICTS),
         f"{total(entries, 'n'):,} of {total(entries, 'answers'):,}", f"{total(entries, 'unreadable'):,}"]
        for arm, entries in by_arm
    ]  # fmt: skip
    return Section(
        title="Talk about being tested",
        about="Shares of the transcripts of agentic misalignment in which the agent asks itself whether it is being "
        f"tested, and what it then leans to, by {_judges(by_arm)}, which sees neither the arm nor the outcome.",
        tables=[Table(["Arm", *eval_awareness.VERDICTS.values(), "read", "not readable"], rows)],
        notes=[
            "A model that takes a situation for a test may behave well for that reason: compare this with its rate."
        ],
        figure=None,
    )


def _side_effects(result: Mapping[str, Any], by_arm: Sequence[tuple[dict, list[dict]]]) -> Section:
    rows = [
        [arm["label"], interval(_mean_score(entries)), *(_of_rate(entries, name) for name in _HABITS),
         f"{total(entries, 'n'):,} of {total(entries, 'answers'):,}"]
        for arm, entries in by_arm
    ]  # fmt: skip
    return Section(
        title="Everyday questions",
        about=f"What training may cost: coherence from 1 to 10 and two habits, by {_judges(by_arm)}; and calls of "
        "tools, each compared with the one that was wanted.",
        tables=[
            Table(["Arm", "coherence [95 %]", "answer first", "needless questions", "tool called", "graded"], rows),
            *([changed] if (changed := unchanged(by_arm, result["config"]["side_effects"]["margin"])) else []),
        ],
        notes=[
            "Compare arms, not numbers: the questions are easy. Tools are measured where the chat template knows them.",
            "That a difference is not significant is no evidence of none: unchanged is shown by two one-sided tests, "
            "for these models over questions like these, and over training runs.",
        ],
        figure=None,
    )


_HABITS = ("answer_first", "needless_questions", "called")


def _of_rate(entries: Sequence[Mapping[str, Any]], *path: str) -> str:
    """A rate of all seeds together; with one seed, with its interval."""
    found = []
    for entry in entries:
        at = entry["summary"]
        for name in path:
            at = at[name]
        found.append(at)
    n = sum(each["n"] for each in found)
    if not n:
        return "-"
    rate = sum(each["rate"] * each["n"] for each in found if each["n"]) / n
    return f"{rate:.2f} [{found[0]['low']:.2f} {found[0]['high']:.2f}]" if len(found) == 1 else f"{rate:.2f}"


def _judges(by_arm: Sequence[tuple[dict, list[dict]]]) -> str:
    return ", ".join(dict.fromkeys(entry["summary"]["judge"] for _, entries in by_arm for entry in entries))


_NOTHING = {"mean": None, "low": None, "high": None}
_SECTIONS: dict[str, Callable[..., Section]] = {
    "open_qa": _open_questions,
    "agentic_misalignment": _agentic,
    "reasoning": _reasoning,
    "eval_awareness": _eval_awareness,
    "side_effects": _side_effects,
}


def _paper(result: Mapping[str, Any], by_arm: Sequence[tuple[dict, list[dict]]], evaluation: str) -> list[float | None]:
    """What the paper has for each arm of the same model; nothing for arms of a workdir with several specs."""
    known = read_object(_REFERENCE, "install the project anew")[evaluation]
    path = str(result["config"].get("base", {}).get("path", "")).rstrip("/")
    arms = known.get(path.rpartition("/")[2], {})
    several = len({arm["spec"] for arm, _ in by_arm if arm["spec"]}) > 1
    return [None if several else arms.get(arm["name"]) for arm, _ in by_arm]


def _with_paper(header: Sequence[str], rows: Sequence[Sequence[str]], paper: Sequence[float | None]) -> Table:
    """A table with a column for what the paper has, if it has any of it."""
    if not any(value is not None for value in paper):
        return Table(header, rows)
    return Table([*header, "paper"], [[*row, score(value)] for row, value in zip(rows, paper, strict=True)])


def _of_paper(paper: Sequence[float | None]) -> str:
    """What a caption says of the diamonds."""
    known = read_object(_REFERENCE, "install the project anew")
    if not any(value is not None for value in paper):
        return ""
    return f" Diamonds: {known['source']}, {known['error']}; questions, judge and corpora are others."
