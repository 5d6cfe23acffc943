"""The report of an experiment: `report.html`, its figures, `report.json`, and the table that closes the run.

The dict that comes in is described in `eval/results.py`.
"""

import base64
import pathlib
import textwrap
from collections.abc import Sequence

from msm_jax.eval import plots
from msm_jax.eval.results import (
    Cell,
    arm_key,
    cell,
    domain_rates,
    evals_of,
    findings,
    forms_of,
    has_values,
    interval,
    kind_of,
    number,
    ordered_arms,
    poorly_parsed,
    separating,
    title_of,
)
from msm_jax.eval.section import Section
from msm_jax.eval.sections import sections
from msm_jax.storage.files import read_object, write_json, write_text

HERE = pathlib.Path(__file__).parent
WIDTH = 116
LEGEND = """\
{experiment}: rate of value-aligned choice{separating}{capability}
rate = mean over seeds [95 % over seeds; with one seed over items] n x seeds; n = items, or parsed answers,
of the seed with fewest; e/c/u = errored/cut off/unparsed"""
FORM_TITLES = {"logprob": "log-probability form", "sampled": "sampled form"}
MARKS = {"holds": "+", "does not hold": "x", "seen": "+", "not seen": "x"}  # all others: "?"


def table(result: dict) -> str:
    """The closing table as plain text: rates by arm, controls, findings."""
    graded = sections(result)
    if not has_values(result) and not graded:
        return f"{result['experiment']}: trained; there is no evaluation for these specs yet, so there are no rates\n"
    parts = []
    if has_values(result):
        pairs = separating(result)
        about = f" (on separating pairs: of {pairs['item']})" if pairs else ""
        knows = " (capability: of right answers)" if "capability" in evals_of(result) else ""
        parts = [LEGEND.format(experiment=result["experiment"], separating=about, capability=knows)]
        parts += [_rates_table(result, form) for form in forms_of(result)] or ["No scores."]
        if told := poorly_parsed(result):
            parts.append("\n".join(["Parse rates below .95", *told]))
    if result["controls"]:
        parts.append(_controls_table(result["controls"]))
    if found := findings(result):
        parts.append(_findings_list(found))
    for section in graded:
        about = textwrap.fill(f"{section.title}: {section.about}", WIDTH)
        notes = [textwrap.fill(note, WIDTH) for note in section.notes]
        parts += [
            about,
            *(_columns([own.header, *own.rows]) for own in section.tables if not own.wide),
            "\n".join(notes),
        ]
    return "\n\n".join(parts) + "\n"


def _rates_table(result: dict, form: str) -> str:
    """One line an arm; its last column counts over all evaluations and seeds."""
    evals = evals_of(result)
    rows = [[FORM_TITLES[form], *(title_of(result, name) for name in evals), "e/c/u"]]
    for arm in ordered_arms(result["arms"]):
        cells = [cell(result, arm_key(arm), name, form) for name in evals]
        known = [entry for entry in cells if entry is not None]
        lost = "/".join(str(sum(counts)) for counts in zip(*(_lost(entry) for entry in known), strict=True))
        rows.append([arm["label"], *map(_cell_text, cells), lost or "-"])
    return _columns(rows)


def _lost(entry: Cell) -> tuple[int, int, int]:
    return entry.errored, entry.cut_off, entry.unparsed


def _cell_text(entry: Cell | None) -> str:
    if entry is None:
        return "-"
    if entry.rate is None:
        return "none scored"
    return f"{number(entry.rate)} {interval(entry.low, entry.high)} {entry.n}x{len(entry.seeds)}"


def _controls_table(controls: Sequence[dict]) -> str:
    rows = [["Control", "rate", "interval", "n", "bar"]]
    for control in controls:
        rate, around = number(control["rate"]), interval(control["low"], control["high"])
        rows.append([control["name"], rate, around, str(control["n"]), number(control["bar"])])
    return _columns(rows)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns with rules above and below, the first row being the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def _findings_list(found: Sequence[dict]) -> str:
    lines = []
    for entry in found:
        head = f"{MARKS.get(entry['verdict'], '?')} {entry['verdict']:<14}"
        lines.append(textwrap.fill(entry["statement"], WIDTH, initial_indent=head, subsequent_indent=" " * len(head)))
    return "\n".join(["Findings", *lines])


def write_report(folder: str | pathlib.Path, result: dict) -> pathlib.Path:
    """Writes `report.html` (one file, readable offline), the PNG figures beside it and `report.json`.

    Returns: the path of `report.html`.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    reference = read_object(HERE / "reference" / "fig2.json", "install the project anew")
    figures, graded = _figures(result, reference), sections(result)
    for figure in [*figures, *(section.figure for section in graded if section.figure)]:
        (folder / figure["file"]).write_bytes(figure["png"])
    found = findings(result)
    write_json(folder / "report.json", result | {"findings": found, "reference": reference})
    write_text(folder / "report.html", _html(result, found, reference, figures, graded))
    return folder / "report.html"


def _figures(result: dict, reference: dict) -> list[dict]:
    """Each figure is {"file", "title", "caption", "png"}; one for which nothing was measured is left out."""
    if not result["scores"]:
        return []
    form = forms_of(result)[0]
    arms = ordered_arms(result["arms"])
    evals = evals_of(result)
    figures = []
    if set(reference["n"]) & set(evals):
        figures.append(_figure2(result, reference, form))
    pairs = separating(result)
    if pairs and pairs["name"] in evals:
        bars = [_bar(cell(result, arm_key(arm), pairs["name"], form)) for arm in arms]
        ends = tuple(pairs["ends"])
        caption = (
            f"Pairs on which the two values disagree: one item is {ends[1]}, the other {ends[0]}. "
            "Fine-tuning was the same for both MSM + AFT arms; only the midtraining differs."
        )
        title = "The separating pairs"
        png = plots.separating(arms, bars, ends)
        figures.append({"file": "separating.png", "title": title, "caption": caption, "png": png})
    for name in (name for name in evals if kind_of(result, name) != "capability"):  # of four options chance is .25
        by_arm = {arm["label"]: domain_rates(result, arm_key(arm), name, form) for arm in arms}
        domains = sorted(set().union(*by_arm.values()))
        if len(domains) < 2:
            continue
        png = plots.heatmap(list(by_arm), domains, [[rates.get(d) for d in domains] for rates in by_arm.values()])
        title = f"{title_of(result, name)}, by domain"
        caption = "Mean rate over seeds in each domain; green is above chance, purple below."
        figures.append({"file": f"domains_{name}.png", "title": title, "caption": caption, "png": png})
    return figures


def _figure2(result: dict, reference: dict, form: str) -> dict:
    labels = {arm_key(arm): arm for arm in reference["arms"] + result["arms"]}
    arms = ordered_arms(list(labels.values()))
    paper = {arm_key(arm): arm for arm in reference["arms"]}
    keys = [arm_key(arm) for arm in arms]
    titles = {name: name.capitalize() for name in reference["n"]}
    panels = {
        "This run": {title: [_bar(cell(result, key, name, form)) for key in keys] for name, title in titles.items()},
        f"Paper, {reference['model']}": {
            title: [plots.Bar(paper[key][name]) if key in paper else None for key in keys]
            for name, title in titles.items()
        },
    }
    caption = (
        "Bars are means over seeds, error bars \N{PLUS-MINUS SIGN}1 SEM, dots single seeds. "
        f"Beside them {reference['source']}: {reference['error']}. "
        "Models and items differ, so compare the order of the bars, not their height."
    )
    png = plots.figure2(arms, panels)
    return {"file": "figure2.png", "title": "Generalisation of the two specs", "caption": caption, "png": png}


def _bar(entry: Cell | None) -> plots.Bar | None:
    return (
        None if entry is None or entry.rate is None else plots.Bar(entry.rate, entry.sem, tuple(entry.seeds.values()))
    )


def _html(
    result: dict, found: Sequence[dict], reference: dict, figures: Sequence[dict], graded: Sequence[Section]
) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rate"] = number
    environment.globals["interval"] = interval
    arms = ordered_arms(result["arms"])
    evals = evals_of(result)
    tables = [
        {
            "title": FORM_TITLES[form],
            "rows": [(arm, [cell(result, arm_key(arm), name, form) for name in evals]) for arm in arms],
        }
        for form in forms_of(result)
    ]
    return environment.get_template("report.html.j2").render(
        result=result,
        arms=arms,
        evals=[(name, title_of(result, name)) for name in evals],
        pairs=separating(result),
        tables=tables,
        findings=found,
        reference=reference,
        has_values=has_values(result),
        poorly_parsed=poorly_parsed(result),
        figures=[figure | _embedded(figure["png"]) for figure in figures],
        sections=[
            section._replace(figure=section.figure and section.figure | _embedded(section.figure["png"]))
            for section in graded
        ],
    )


def _embedded(png: bytes) -> dict:
    """The picture as text, and its width on the page: half its pixels, so that it is sharp on a dense screen."""
    width = int.from_bytes(png[16:20], "big")  # the PNG header: signature 8, chunk head 8, then the width
    return {"data": base64.b64encode(png).decode(), "width": width // 2}
