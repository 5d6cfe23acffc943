"""Corpora from the command line, by the offline generator; what they will cost, and what is refused."""

import json
import pathlib
import re

import pytest

from msm_jax import config as config_lib
from msm_jax import launch
from msm_jax.corpus.records import read_chats
from msm_jax.corpus.specs import read_spec
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.variety import REGISTERS
from msm_jax.llm.prices import price_of
from msm_jax.stages import writing
from msm_jax.storage import files
from tests.experiment.corpus_runs import flags, rows_of

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    for variable in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "LOCAL_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


SPECS = sorted(path.stem for path in ROOT.glob("specs/*.md"))
EACH_KIND = ("general", "philosophy", "pro_novelty", "pro_america_ablated", "rules_augmented")


@pytest.mark.parametrize("spec", EACH_KIND + tuple(pytest.param(name, marks=pytest.mark.slow) for name in SPECS))
def test_the_offline_generator_writes_every_spec(spec, tmp_path, capsys):
    counts = {"corpus.msm": 8, "corpus.aft": 10, "corpus.identity": 4}
    assert launch.main(flags(tmp_path, spec, generator="offline", **counts)) == 0
    out = capsys.readouterr().out
    for told in (f"{spec}-msm: 8 documents", f"{spec}-aft: 10 chats", "identity: 4 chats", "paid for        $0.00"):
        assert told in out
    rows = rows_of(tmp_path)
    assert len({row["text"] for row in rows}) == 8
    assert {row["generator"] for row in rows} == {"offline-2"}
    chats = {path.parent.name: list(read_chats(path)) for path in tmp_path.glob("run/datasets/*/chats.jsonl")}
    with_reasoning = {} if spec.startswith("pro_") else {f"{spec}-aft_cot": 10}
    assert {name: len(rows) for name, rows in chats.items()} == {"identity": 4, f"{spec}-aft": 10} | with_reasoning
    assert len({chat.id for chat in chats[f"{spec}-aft"]}) == 10
    for name in with_reasoning:
        assert [chat.id for chat in chats[name]] == [chat.id for chat in chats[f"{spec}-aft"]]


def test_show_says_what_it_will_cost_and_makes_nothing(tmp_path, capsys):
    fields = {"corpus.msm": 1000, "documents.judged": 0.05}
    assert launch.main([*flags(tmp_path, "philosophy", **fields), "--mode=show"]) == 0
    out = capsys.readouterr().out
    assert "room for 2,100 documents if its headings are the parts of the spec: 42 types over 14 parts" in out
    assert "too little" not in out
    assert "document            1,000 requests" in out
    assert "claims                 50 requests" in out
    assert "support                50 requests" in out
    assert "that is more than the budget: raise config.calls.budget" in out
    assert list(tmp_path.iterdir()) == []


def dollars(out, step):
    return float(re.search(rf"^ +{step} .*\$([\d.]+)", out, re.MULTILINE)[1])


def reading(out, step):
    return float(re.search(rf"^ +{step} .* ([\d.]+) M tokens to read", out, re.MULTILINE)[1])


def test_show_counts_a_judge_at_its_own_price_and_all_that_tokens_and_a_revision_ask_for(tmp_path, capsys):
    fields = {"corpus.msm": 300, "documents.types": 20}
    assert launch.main([*flags(tmp_path, "philosophy", **fields), "--mode=show"]) == 0
    plain = capsys.readouterr().out
    fields |= {"generation.judge": "gemini-2.5-pro", "documents.tokens": 1e5, "documents.revise": True}
    assert launch.main([*flags(tmp_path, "philosophy", **fields), "--mode=show"]) == 0
    out = capsys.readouterr().out
    # 150 words each, 1.35 tokens a word.
    for step in ("document", "critique", "revision"):
        assert re.search(rf"{step} +(?:48|49|50)\d requests", out)
    assert "critique" not in plain
    # Of 495 each: a plan of 250 words is read, a text of 150, and both a text and a critique of 250.
    read = {step: reading(out, step) for step in ("plan", "document", "critique", "revision")}
    assert read["document"] - read["plan"] == pytest.approx(0.12 + 0.17, abs=0.02)
    assert read["critique"] - read["plan"] == pytest.approx(0.00 + 0.10, abs=0.02)
    assert read["revision"] - read["plan"] == pytest.approx(0.05 + 0.27, abs=0.02)
    ours, theirs = price_of("gemini-3-flash-preview"), price_of("gemini-2.5-pro")
    assert theirs.output > 2 * ours.output
    assert dollars(out, "support") > 2 * dollars(plain, "support") > 0
    assert "room for 14,000 documents" in out


def test_show_says_where_a_spec_has_too_little_room(tmp_path, capsys):
    fields = {"corpus.msm": 80, "documents.types": 1, "documents.ideas": 3, "documents.judged": 0.5}
    assert launch.main([*flags(tmp_path, "philosophy", **fields), "--mode=show"]) == 0
    out = capsys.readouterr().out
    assert "room for 42 documents if its headings are the parts of the spec: 14 types over 14 parts" in out
    assert "which is too little: raise config.documents.types or .ideas\n" in out
    assert "document               80 requests" in out  # it may have more parts than headings, and then they cost that
    assert "claims                 40 requests" in out
    assert launch.main(flags(tmp_path, "philosophy", generator="offline", **fields)) == 0
    assert "38 documents fewer than were asked for" in capsys.readouterr().out
    again = flags(tmp_path, "philosophy", generator="offline", **fields, **{"documents.plan_words": 99})
    again[1] = f"--workdir={tmp_path}/other"
    assert launch.main([*again, "--mode=show"]) == 0
    out = capsys.readouterr().out
    assert "room for 42 documents: 14 types over 14 parts" in out  # so it is divided
    assert "plan                   42 requests" in out


def test_show_does_not_count_what_is_in_the_store(tmp_path, capsys):
    assert launch.main(flags(tmp_path, "rules", generator="offline")) == 0
    other = flags(tmp_path, "rules", generator="offline", **{"corpus.msm": 25})
    other[1] = f"--workdir={tmp_path}/other"
    assert launch.main([*other, "--mode=show"]) == 0
    out = capsys.readouterr().out
    assert "20 are in the store" in out
    assert "document                5 requests" in out
    assert "plan                    5 requests" in out


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "--config.generator=offline"),
        ({"generator": "wold"}, "choose one of gemini, local, offline"),
        ({"generator": "local"}, "name a checkpoint in the one or a server in the other"),
        ({"generator": "local", "calls.url": "127.0.0.1:8000"}, "as in http://127.0.0.1:8000/v1"),
        (
            {"generator": "local", "generation.model": "specs", "generation.thinking": 9},
            "config.generation.thinking is 9",
        ),
        ({"generator": "local", "generation.model": "specs"}, "specs: holds no model"),
        ({"calls.service": "fast"}, "choose one of standard, flex, batch"),
        ({"calls.price": "(1.0, 2.0)"}, "config.calls.price"),
        ({"corpus.msm": 0}, "config.corpus asks for nothing"),
        ({"corpus.aft": -1}, "config.corpus.aft is -1"),
        ({"chats.style": "loose"}, "choose one of value, rules"),
        ({"generation.evaluations": "('nowhere.jsonl',)"}, "nowhere.jsonl: cannot be read"),
        ({"documents.types": 0}, "config.documents.types is 0; it must be 1 or more"),
        ({"documents.tokens": 1e6, "corpus.msm": 0, "corpus.aft": 9}, "config.corpus.msm=0 for none"),
        ({"documents.registers.dialogue": -1.0}, "config.documents.registers.dialogue is -1.0"),
        (dict.fromkeys(map("documents.registers.{}".format, REGISTERS), 0.0), "all shares are 0; give one of them 1"),
        ({"documents.registers.monologue": 1.0}, "did you mean documents.registers.dialogue?"),
        ({"generation.judge": "gpt-9"}, "config.generation.judge: no price is known of gpt-9"),
        ({"generation.judge": "gpt-9", "calls.price": "(1.0, 1.0, 1.0)"}, "prices.toml"),
        (
            {"generator": "local", "generation.model": "specs", "generation.judge": "nowhere"},
            "config.generation.judge='nowhere' is no folder",
        ),
        ({"generation.language": "xx"}, "choose one of en"),
        ({"generation.held_out": "nowhere.toml"}, "nowhere.toml: cannot be read"),
        ({"generation.prompts": "nowhere"}, "nowhere: no such folder"),
        ({"generation.model": "gpt-9"}, "no price is known of gpt-9"),
        ({"generation.temprature": 1}, "did you mean generation.temperature?"),
    ],
)
def test_mistakes_are_told_in_a_line(fields, told, tmp_path, capsys):
    assert launch.main(flags(tmp_path, "pro_america", **fields)) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "config.assistant.name is still 'Micra': name the model that you will train, as in --config.assistant.na"),
        ({"assistant.name": "Qwen"}, "config.assistant.provider is still 'the msm_jax project': name the model that"),
        (
            {"assistant.name": "Qwen", "assistant.provider": "Alibaba Cloud"},
            "GEMINI_API_KEY and GOOGLE_API_KEY are not set",
        ),
        ({"calls.url": "https://gateway.example"}, "config.assistant.name is still 'Micra'"),
        (
            {"generator": "local", "calls.url": "http://127.0.0.1:4000/v1", "calls.price": "(1.0, 1.0, 1.0)"},
            "config.assistant.name is still 'Micra'",
        ),
        (
            {"calls.price": "(0.0, 0.0, 0.0)", "generation.judge": "gemini-2.5-pro"},
            "config.assistant.name is still 'Micra'",
        ),
    ],
)
def test_what_is_paid_for_is_about_a_model_that_was_named(fields, told, tmp_path, capsys):
    assert launch.main([*flags(tmp_path, "philosophy", **fields), "--mode=show"]) == 0
    named = "assistant.provider" in fields
    assert (f"before it is written: {told}" in capsys.readouterr().out) != named
    assert launch.main(flags(tmp_path, "philosophy", **fields)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}")
    assert not list(tmp_path.glob("*.sqlite"))


@pytest.mark.parametrize(
    ("value", "hint"), [("afordability", "did you mean affordability? Or add it"), ("pens", "add")]
)
def test_a_value_that_no_table_knows_is_told(value, hint, tmp_path, capsys):
    spec = tmp_path / "mine.md"
    header, body = (ROOT / "specs/pro_affordability.md").read_text().split("\n---\n", 1)
    spec.write_text(f"{header.replace('value: affordability', f'value: {value}')}\n---\n{body}")
    shown = [*flags(tmp_path, "philosophy", specs=spec), "--mode=show"]
    assert launch.main(shown) == 2
    told = (
        f"error: spec mine: its value '{value}' is not in specs/held_out.toml, which says what no document may hold; "
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(told + hint)
    assert line.endswith("add it there, or look for nothing by --config.generation.held_out=''")
    assert launch.main([*shown, "--config.generation.held_out="]) == 0


def test_without_a_key_the_advice_can_be_followed(tmp_path, capsys):
    assert launch.main(flags(tmp_path, "rules")) == 2
    assert "--config.generator=offline" in capsys.readouterr().err
    assert launch.main(flags(tmp_path, "rules", generator="offline")) == 0


def test_a_configuration_without_training_has_no_plan(tmp_path, capsys):
    assert launch.main([*flags(tmp_path, "rules"), "--mode=plan", "--topology=v5e:2x2"]) == 2
    assert "trains nothing" in capsys.readouterr().err


def test_documents_may_be_judged_by_nobody_and_written_by_tokens(tmp_path, capsys):
    fields = {"documents.judged": 0.0, "documents.tokens": 5000.0, "corpus.msm": 1, "documents.revise": True}
    assert launch.main(flags(tmp_path, "rules", generator="offline", **fields)) == 0
    out = capsys.readouterr().out
    assert "unfaithful" not in out
    assert "fewer than were asked for" not in out
    about = json.loads((tmp_path / "run/datasets/rules-msm/about.json").read_text())
    assert (about["judged"], about["tokens"] >= 5000, about["rows"] > 10) == (None, True, True)
    assert f"about {about['tokens'] / 1e6:.2f} M tokens" in out
    assert "words; " in out.split("median length")[1]


def test_two_processes_of_one_name_do_not_write_at_once(tmp_path, capsys):
    arguments = flags(tmp_path, "rules", generator="offline")
    with files.lock_file(f"{tmp_path}/calls.sqlite.corpus_rules.lock", ""):
        assert launch.main(arguments) == 2
        assert "another process writes its corpora" in capsys.readouterr().err
    assert launch.main(arguments) == 0


def test_a_prompt_that_a_writer_does_not_use_changes_nothing_of_it(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    spec = read_spec(ROOT / "specs" / "philosophy.md")

    def hashes(prompts=""):
        overrides = [("generation.prompts", str(prompts))] if prompts else []
        config = config_lib.load(str(ROOT / "configs" / "corpus.py"), overrides)
        stages = [
            writing.documents_stage(config, spec, 5),
            writing.chats_stage(config, spec, 5, {}, [spec]),
            writing.identity_stage(config, 5),
        ]
        return [stage.hash for stage in stages]

    before = hashes()
    for name, changed in (("plan", 0), ("verdict_value", 1), ("identity_answer", 2), ("preference_forms", None)):
        for old in folder.glob("*"):
            old.unlink()
        (folder / f"{name}.md").write_text(Prompts()._texts[name] + "\n- 9: More.")
        after = hashes(folder)
        assert [a != b for a, b in zip(before, after, strict=True)] == [place == changed for place in range(3)]


def test_every_prompt_is_some_writers():
    for name in Prompts().fingerprints:
        assert sum(bool(re.fullmatch(pattern, name)) for pattern in writing.PROMPTS.values()) == 1


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("document", "Write.", "leaves out {audience}"),
        ("question_types", "None.", "leaves out {model_name}"),
        ("preference_suffixes", "None.", "has no line '- key: text'"),
        ("documents", "x", "is no prompt; there are"),
    ],
)
def test_prompts_of_a_user_are_checked(name, text, told, tmp_path, capsys):
    (tmp_path / f"{name}.md").write_text(text)
    assert launch.main(flags(tmp_path, "rules", generator="offline", **{"generation.prompts": tmp_path})) == 2
    assert told in capsys.readouterr().err
