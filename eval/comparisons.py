"""Tables of the report that compare: arms with the first of them, and two judges of the same answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from msm_jax.eval import stats
from msm_jax.eval.section import Table, score


def contrasts_with_the_first(by_arm: Sequence[tuple[dict, list[dict]]], cells: Sequence[str]) -> Table | None:
    """Each arm against the first of them, cell by cell: what the interval over these prompts, and over prompts like
    these, says; p-values are those of the second, by Holm over the arms."""
    first, *others = [(arm["label"], counts_of_cells(entries, cells)) for arm, entries in by_arm]
    found = {}
    for label, (yes, n) in others:
        if any(a and b for a, b in zip(n, first[1][1], strict=True)):
            found[label] = stats.cell_difference(yes, n, *first[1], cells)
    if not found:
        return None
    runs = {arm["label"]: _by_seed(by_arm[0][1], entries) for arm, entries in by_arm[1:]}
    known = {label: each.like_these.p_value for label, each in found.items() if each.like_these.p_value is not None}
    adjusted = {each.name: each.adjusted for each in stats.holm(list(known), list(known.values()))} if known else {}
    rows = []
    for label, each in found.items():
        of_prompts, of_answers = each.like_these, each.these
        p = "-" if label not in adjusted else "<.001" if adjusted[label] < 0.001 else f"{adjusted[label]:.3f}"
        rows.append([label, f"{of_prompts.estimate:+.3f}", _around(of_answers), _around(of_prompts), p, runs[label]])
    return Table(
        [f"Minus {first[0]}", "difference", "these prompts", "prompts like these", "p (Holm)", "other training runs"],
        rows,
    )


def _by_seed(first: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]) -> str:
    """The paired interval over the seeds that both have: the only one that has the spread of training runs in it. None
    of models that no seed has trained."""
    if not entries[0]["trained"]:
        return "-"
    shared = _means_by_seed(entries, first)
    return _around(stats.seed_difference(*zip(*shared, strict=True))) if len(shared) > 1 else "-"


def counts_of_cells(entries: Sequence[Mapping[str, Any]], cells: Sequence[str]) -> tuple[list[int], list[int]]:
    """Of each cell, over all seeds: decisions for the act, and judged answers."""
    yes, n = [], []
    for cell in cells:
        found = [entry["summary"]["cells"][cell]["verdict"] for entry in entries if cell in entry["summary"]["cells"]]
        n.append(sum(each["n"] for each in found))
        yes.append(sum(round(each["rate"] * each["n"]) for each in found if each["rate"] is not None))
    return yes, n


def spread_over_seeds(by_arm: Sequence[tuple[dict, list[dict]]], cells: Sequence[str]) -> list[str]:
    """A sentence for each arm that was measured several times: of models that seeds trained, where the variance of the
    mean comes from; of others, how far measuring again moves it."""
    found = []
    for arm, entries in by_arm:
        each = [counts_of_cells([entry], cells) for entry in entries]
        shared = [place for place in range(len(cells)) if all(n[place] >= 2 for _, n in each)]
        if len(each) < 2 or not shared:
            continue
        yes, n = ([[counts[side][place] for place in shared] for counts in each] for side in (0, 1))
        if entries[0]["trained"]:
            found.append(f"{arm['label']}: {stats.variance_components(yes, n).sentence}")
            continue
        rates = [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(yes, n, strict=True)]
        floor = stats.remeasurement_floor(rates)
        if not floor.sd:
            continue  # of few answers that all came out alike: it does not say that none ever will
        found.append(
            f"{arm['label']}: two single measurements of this same model differ by up to {1.96 * floor.sd:.3f} in 95 % "
            f"of cases (from {floor.repeats} measurements of {floor.items} cells). The mean of all of them is surer."
        )
    return found


def unchanged(by_arm: Sequence[tuple[dict, list[dict]]], margin: float) -> Table | None:
    """Of each arm against the first: whether coherence, from 1 to 10, is the same within `margin` points. Over
    questions like these, for these models; and of arms that several seeds trained, over training runs."""
    (first, reference), *others = [(arm["label"], entries) for arm, entries in by_arm]
    rows = []
    for label, entries in others:
        own, known = _by_question(entries), _by_question(reference)
        shared = [question for question in own if question in known]
        if not shared:
            continue
        found = _equivalence(*([each[question] for question in shared] for each in (own, known)), margin, "item")
        of_runs = "-"
        if entries[0]["trained"] and len(seeds := _means_by_seed(entries, reference)) > 1:
            of_runs = _change(_equivalence(*map(list, zip(*seeds, strict=True)), margin, "seed"), margin)
        around = "-" if found.low is None else f"[{9 * found.low:+.2f} {9 * found.high:+.2f}]"
        rows.append([label, f"{9 * found.estimate:+.2f}", around, _change(found, margin), of_runs, f"{len(shared)}"])
    header = [f"Coherence minus {first}", "points", "90 %", "these models", "other training runs", "questions"]
    return Table(header, rows) if rows else None


def _equivalence(own: Sequence[float], reference: Sequence[float], margin: float, unit: str) -> stats.Equivalence:
    """Of scores from 1 to 10, on the scale from 0 to 1 that the test takes."""
    scores = [[(value - 1) / 9 for value in each] for each in (own, reference)]
    return stats.equivalence(*scores, margin / 9, unit)


def _change(found: stats.Equivalence, margin: float) -> str:
    return "not shown" if found.verdict == "not shown" else f"unchanged within {margin:g}"


def _means_by_seed(
    entries: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> list[tuple[float, float]]:
    """(mean of this arm, mean of the other) of each seed that both have."""
    own, others = ({entry["seed"]: entry["summary"]["mean"] for entry in each} for each in (entries, reference))
    pairs = [(own[seed], others[seed]) for seed in own if seed in others]
    return [pair for pair in pairs if None not in pair]


def _by_question(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for entry in entries:
        for question, value in entry["summary"]["questions"].items():
            found.setdefault(question, []).append(value)
    return {question: sum(values) / len(values) for question, values in found.items()}


def _around(estimate: stats.Estimate) -> str:
    return "-" if estimate.low is None else f"[{estimate.low:+.3f} {estimate.high:+.3f}]"


def two_judges(by_arm: Sequence[tuple[dict, list[dict]]]) -> Table | None:
    """What a second judge says of the same answers, where there is one. Agreement and kappa are of what counts for the
    mean (`counts` of the evaluation), over the answers that both could judge. They have no interval: answers to one
    question go together, and the table of both judges does not say which they are."""
    rows = []
    for arm, entries in by_arm:
        both = [entry["summary"]["second"] for entry in entries if "second" in entry["summary"]]
        table = [[sum(each["table"][i][j] for each in both) for j in (0, 1)] for i in (0, 1)]
        if not both or not (n := sum(map(sum, table))):
            continue
        first = [0] * sum(table[0]) + [1] * sum(table[1])
        second = [j for i in (0, 1) for j in (0, 1) for _ in range(table[i][j])]
        found = stats.agreement(first, second)
        means = [score(_mean_of([entry["summary"]["mean"] for entry in entries])),
                 score(_mean_of([each["mean"] for each in both]))]  # fmt: skip
        rows.append([arm["label"], *means, f"{found.agree.estimate:.2f} of {n:,}", score(found.kappa.estimate),
                     f"{table[1][0]:,}/{table[0][1]:,}"])  # fmt: skip
    names = dict.fromkeys(
        name
        for _, entries in by_arm
        for entry in entries
        if "second" in entry["summary"]
        for name in (entry["summary"]["judge"], entry["summary"]["second"]["judge"])
    )
    if not rows:
        return None
    header = ["Two judges", *(list(names) if len(names) == 2 else ["first", "second"])]
    return Table([*header, "they agree", "kappa", "only first/second says yes"], rows)


def corrected_by_gold(
    by_arm: Sequence[tuple[dict, list[dict]]], gold: Mapping[str, Any]
) -> tuple[Table, Sequence[str]]:
    """The rates that a person would have found, by `gold.facts`, and what is said of the judge."""
    rows = []
    for arm, entries in by_arm:
        drawn = [gold["drawn"].get(entry["transcripts"]) for entry in entries]
        judges = [entry["summary"]["judge"] for entry in entries]
        of_these = [each and each["judge"] == judge for each, judge in zip(drawn, judges, strict=True)]
        if not all(of_these):
            lacks = "labels of some of its seeds" if any(of_these) else "labels of these answers by this judge"
            rows.append([arm["label"], "-", "-", f"the gold set lacks {lacks}: draw one of this run"])
            continue
        rate = gold["arms"][drawn[0]["arm"]]
        around = "" if rate["low"] is None else f" [{rate['low']:.2f} {rate['high']:.2f}]"
        rows.append([arm["label"], score(rate["raw"]), f"{score(rate['estimate'])}{around}", rate["reason"] or ""])
    notes = [f"Gold set: {each.rstrip('.')}." for each in gold["told"]]
    return Table(["By a gold set", "judge", "corrected [95 %]", ""], rows), notes


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
