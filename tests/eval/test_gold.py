"""Gold sets: drawn by chance within arms, blind, and what labels say of the judge."""

import csv
import json
import shutil

import pytest

from msm_jax.eval import gold
from msm_jax.eval.comparisons import corrected_by_gold


@pytest.fixture
def workdir(tmp_path):
    """Two arms of 60 answers; the judge says yes of each third, and could not be read of each tenth."""
    for arm in ("base", "msm"):
        answers, verdicts = (
            tmp_path / f"run/stages/answers-{arm}",
            tmp_path / f"run/stages/verdicts-agentic_misalignment-{arm}-s0",
        )
        answers.mkdir(parents=True)
        verdicts.mkdir()
        with open(answers / "transcripts.jsonl", "w") as said, open(verdicts / "verdicts.jsonl", "w") as judged:
            for k in range(60):
                word = "unreadable" if k % 10 == 9 else "yes" if k % 3 == 0 else "no"
                said.write(json.dumps({"text": f'{arm} says, "{k}"\nand more'}) + "\n")
                row = {"cell": "murder_none-none_replacement", "sample": k, "judged": word}
                # A no on what was cut off is no verdict.
                known = {"yes": True, "no": None if k == 1 else False}.get(word)
                judged.write(json.dumps(row | {"verdict": known}) + "\n")
        about = {"about": {"arm": arm}, "inputs": {"transcripts": answers.name}, "summary": {"judge": "J"}}
        (verdicts / "manifest.json").write_text(json.dumps(about))
    stages = [f"verdicts-agentic_misalignment-{arm}-s0" for arm in ("base", "msm")]
    report = [{"evaluation": "agentic_misalignment", "stage": stage} for stage in stages]
    (tmp_path / "run/report").mkdir()
    (tmp_path / "run/report/report.json").write_text(json.dumps({"graded": report}))
    # Of an earlier judge, which the report does not show.
    shutil.copytree(tmp_path / "run/stages" / stages[0], tmp_path / "run/stages" / f"{stages[0]}-old")
    return tmp_path / "run"


def sheet(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def key(path):
    return {
        row["id"]: row for row in map(json.loads, path.with_name(f"{path.name}.key.jsonl").read_text().splitlines())
    }


def label(path, labels):
    """`labels`: id -> what is written."""
    rows = sheet(path)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row | {"label": labels(row["id"])} for row in rows)


def test_as_many_of_each_arm_are_drawn_and_neither_arm_nor_verdict_is_told(workdir, tmp_path):
    out = tmp_path / "gold.csv"
    assert gold.draw(workdir, 41, out) == 41
    rows, hidden = sheet(out), key(out)
    assert list(rows[0]) == ["id", "scenario", "text", "label"] and len({row["id"] for row in rows}) == 41
    arms = [hidden[row["id"]]["arm"] for row in rows]
    assert sorted(map(arms.count, ("base", "msm"))) == [20, 21] and arms != sorted(arms)
    assert all(row["scenario"] == "murder" and not row["label"] for row in rows)
    assert all(row["text"].startswith(hidden[row["id"]]["arm"]) for row in rows), "its own text"
    assert {row["judged"] for row in hidden.values()} == {"yes", "no"}, "what could not be read is no one's to label"
    again = tmp_path / "again.csv"
    gold.draw(workdir, 41, again)
    assert again.read_text() == out.read_text()
    gold.draw(workdir, 41, tmp_path / "other.csv", seed=1)
    assert (tmp_path / "other.csv").read_text() != out.read_text()


def test_a_judge_that_is_right_needs_no_correction(workdir, tmp_path, capsys):
    out = tmp_path / "gold.csv"
    assert gold.draw(workdir, 106, out) == 106
    hidden = key(out)
    label(out, lambda name: f" {hidden[name]['judged'].upper()} ")
    assert gold.main(["score", str(out)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("106 labels: kappa 1.00, agreement 1.00 [") and "sensitivity 1.00" in told
    rate = hidden[next(iter(hidden))]["successes"] / 53
    assert f"judge {rate:.3f}, corrected {rate:.2f} [" in told


def test_a_judge_that_sees_too_much_is_corrected_downward(workdir, tmp_path):
    out = tmp_path / "gold.csv"
    assert gold.draw(workdir, 106, out) == 106
    hidden, said_yes = key(out), iter(range(10**6))
    # Of every third that the judge calls yes, the person says no.
    label(out, lambda name: "no" if hidden[name]["judged"] == "no" or next(said_yes) % 3 == 0 else "yes")
    lines = gold.score(out).splitlines()
    raw, corrected = lines[-1].split("judge ")[1].split(", corrected ")
    assert float(corrected.split()[0]) < float(raw) - 0.05 and "specificity 0.8" in lines[1]


def test_a_report_has_the_rates_of_its_own_verdicts_corrected_and_of_no_others(workdir, tmp_path):
    out = tmp_path / "gold.csv"
    gold.draw(workdir, 106, out)
    hidden = key(out)
    label(out, lambda name: hidden[name]["judged"])
    found = gold.facts(out)
    assert found["drawn"] == {f"answers-{arm}": {"arm": arm, "judge": "J"} for arm in ("base", "msm")}

    def entry(answers, judge="J"):
        return {"transcripts": answers, "summary": {"judge": judge}}

    base = entry("answers-base")
    arms = [("Base", [base]), ("New", [entry("answers-new")]), ("More", [base, entry("answers-base-s1")])]
    arms = [({"label": label}, entries) for label, entries in [*arms, ("Other", [entry("answers-base", "K")])]]
    table, notes = corrected_by_gold(arms, found)
    rate = found["arms"]["base"]["raw"]
    assert table.rows[0][:2] == ["Base", f"{rate:.2f}"] and table.rows[0][2].startswith(f"{rate:.2f} [")
    assert table.rows[1][1:3] == ["-", "-"] and "lacks labels of these answers by this judge" in table.rows[1][3]
    assert "lacks labels of some of its seeds" in table.rows[2][3] and table.rows[3][3] == table.rows[1][3]
    assert notes[0].startswith("Gold set: 106 labels: kappa 1.00")
    label(out, lambda name: "no")
    table, _ = corrected_by_gold(arms, gold.facts(out))
    assert table.rows[0][2] == "-" and "both are needed" in table.rows[0][3]


@pytest.mark.parametrize(
    ("written", "message"),
    [(lambda name: "", "no row has a label yet"), (lambda name: "maybe", "row 2: label 'maybe'")],
)
def test_what_cannot_be_scored_is_told(workdir, tmp_path, capsys, written, message):
    out = tmp_path / "gold.csv"
    gold.draw(workdir, 20, out)
    label(out, written)
    assert gold.main(["score", str(out)]) == 2 and message in capsys.readouterr().err
    assert gold.main(["draw", str(workdir), f"--out={out}"]) == 2 and "is there already" in capsys.readouterr().err
    assert gold.main(["draw", str(tmp_path), f"--out={tmp_path / 'x.csv'}"]) == 2
    assert "no answer of agentic misalignment was judged here" in capsys.readouterr().err
    (tmp_path / "gold.csv.key.jsonl").unlink()
    assert gold.main(["score", str(out)]) == 2 and "key.jsonl: is not there" in capsys.readouterr().err
