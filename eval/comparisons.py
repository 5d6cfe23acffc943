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
    means = [{entry["seed"]: entry["summary"]["mean"] for entry in each} for each in (entries, first)]
    shared = [seed for seed in means[0] if means[0][seed] is not None and means[1].get(seed) is not None]
    if len(shared) < 2:
        return "-"
    return _around(stats.seed_difference(*([each[seed] for seed in shared] for each in means)))


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
        found.append(
            f"{arm['label']}: two measurements of this same model differ by up to {1.96 * floor.sd:.3f} in 95 % of "
            f"cases (from {floor.repeats} measurements of {floor.items} cells): no effect can be told that is smaller."
        )
    return found


def unchanged(by_arm: Sequence[tuple[dict, list[dict]]], margin: float) -> Table | None:
    """Of each arm against the first, question by question over all seeds: whether coherence, from 1 to 10, is the same
    within `margin` points."""
    (first, reference), *others = [(arm["label"], _by_question(entries)) for arm, entries in by_arm]
    rows = []
    for label, own in others:
        shared = [question for question in own if question in reference]
        if not shared:
            continue
        # On a scale from 0 to 1, as the test takes it.
        scores = [[(each[question] - 1) / 9 for question in shared] for each in (own, reference)]
        found = stats.equivalence(*scores, margin / 9, "item")
        around = "-" if found.low is None else f"[{9 * found.low:+.2f} {9 * found.high:+.2f}]"
        shown = "not shown" if found.verdict == "not shown" else f"unchanged within {margin:g}"
        rows.append([label, f"{9 * found.estimate:+.2f}", around, shown, f"{len(shared)}"])
    return Table([f"Coherence minus {first}", "points", "90 %", "change", "questions"], rows) if rows else None


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
    mean (`counts` of the evaluation), over the answers that both could judge."""
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
        rows.append([arm["label"], *means, f"{found.agree.estimate:.2f} of {n:,}", _estimate(found.kappa),
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
    return Table([*header, "they agree", "kappa [95 %]", "only first/second says yes"], rows)


def corrected_by_gold(
    by_arm: Sequence[tuple[dict, list[dict]]], gold: Mapping[str, Any]
) -> tuple[Table, Sequence[str]]:
    """The rates that a person would have found, by `gold.facts`, and what is said of the judge."""
    rows = []
    for arm, entries in by_arm:
        stages = [entry["stage"] for entry in entries]
        names = {gold["stages"].get(stage) for stage in stages}
        rate = gold["arms"][names.pop()] if len(names) == 1 and None not in names else None
        if rate is None:
            rows.append([arm["label"], "-", "-", "the gold set has no label of these verdicts: draw one of this run"])
            continue
        around = "" if rate["low"] is None else f" [{rate['low']:.2f} {rate['high']:.2f}]"
        rows.append([arm["label"], score(rate["raw"]), f"{score(rate['estimate'])}{around}", rate["reason"] or ""])
    notes = [f"Gold set: {each.rstrip('.')}." for each in gold["told"]]
    return Table(["By a gold set", "judge", "corrected [95 %]", ""], rows), notes


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _estimate(found: stats.Estimate) -> str:
    around = "" if found.low is None else f" [{found.low:.2f} {found.high:.2f}]"
    return f"{score(found.estimate)}{around}"
