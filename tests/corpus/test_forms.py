"""Rows of every form, from every kind of file; what chats are cleaned of."""

import datetime
import json

import pytest

from msm_jax.corpus import forms, records, sources
from msm_jax.errors import UserError
from tests.corpus.source_files import chat, chats, contents, only_line, parquet, read, write

MMLU = {"question": "Which?", "choices": ["one", "two.", "three", "four"], "answer": 1, "subject": "sums"}


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"messages": chat("q", "a")}, ["q", "a"]),
        ({"messages": json.dumps(chat("q", "a"))}, ["q", "a"]),
        ({"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}, ["q", "a"]),
        ({"messages": [{**turn, "tool_calls": None} for turn in chat("q", "a")]}, ["q", "a"]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["q", "a"]),
        ({"conversations": ["q", "a", "r", "b"], "source": "stackexchange"}, ["q", "a", "r", "b"]),
        ({"prompt": "q", "completion": "a"}, ["q", "a"]),
        ({"instruction": "q", "input": "", "output": "a"}, ["q", "a"]),
        ({"instruction": "q", "input": "i", "output": "a"}, ["q\n\ni", "a"]),
        ({"system": "s", "question": "q", "answers": ["a", "b"]}, ["s", "q", "a"]),
        ({"query": "q", "solution": "a"}, ["q", "a"]),
        (MMLU, ["Which?\n\nA) one\nB) two.\nC) three\nD) four", "The answer is B) two."]),
    ],
)
def test_chats_of_every_form(tmp_path, row, turns):
    loaded = read(tmp_path, [row, {**row, "id": "mine", "more": 1}])
    assert contents(loaded) == [turns, turns]
    roles = [message["role"] for message in loaded.rows[0]["messages"]]
    assert roles == (["system"] * (len(turns) == 3) + ["user", "assistant"] * 2)[: len(turns)]
    assert [row["source"] for row in loaded.rows] == ["rows", "rows"]
    assert (loaded.rows[1]["id"], loaded.rows[1]["more"]) == ("mine", 1)
    # It is what the readers of our own form read.
    write(tmp_path / "out.jsonl", loaded.rows)
    assert [[turn.content for turn in chat.messages] for chat in records.read_chats(tmp_path / "out.jsonl")] == [
        turns
    ] * 2


@pytest.mark.parametrize("column", ["text", "content"])
def test_documents_of_every_form(tmp_path, column):
    loaded = read(tmp_path, [{column: "One.", "domain": "d", "name": 3}, {column: " "}], chats=False, clean=True)
    (row,) = loaded.rows
    assert row == {"id": records.content_id("One."), "text": "One.", "domain": "d", "source": "rows"}
    assert loaded.parts[0]["dropped"] == ({"empty": 1})


def test_two_choices(tmp_path):
    rows = [{**MMLU, "question": f"Which {number}?", "answer": number % 4} for number in range(200)]
    loaded = read(tmp_path, rows, form="two_choices")
    labels, wrong = [], set()
    for row, (asked, answer) in zip(rows, contents(loaded), strict=True):
        question, first, second = asked.replace("\n\n", "\n").split("\n")
        assert question == row["question"]
        label, text = answer.split(") ")
        assert text == row["choices"][row["answer"]]
        assert {"A": first, "B": second}[label] == answer
        wrong.add((row["answer"], {"A": second, "B": first}[label].split(") ")[1]))
        labels.append(label)
    assert 70 < labels.count("A") < 130
    assert len(wrong) == 12
    assert contents(read(tmp_path, rows[::-1], form="two_choices"))[::-1] == contents(loaded)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": chat("q", "")}, "empty"),
        ({"messages": chat("q", None)}, "empty"),
        ({"messages": chat("q", "\ud800")}, "not UTF-8"),
        ({"messages": chat("q", 3)}, "not text"),
        ({"messages": chat("q")}, "no assistant turn"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": None}, "no list of messages"),
        ({"messages": "not JSON"}, "no list of messages"),
        ({"messages": ["q", "a"]}, "no list of messages"),
        (
            {"messages": [*chat("q", "a"), {"role": "tool", "content": "t"}]},
            "another role than system, user, assistant",
        ),
        ({"messages": [*chat("q"), {"role": "assistant", "content": "a", "calls": [1]}]}, "other fields in a message"),
        ({"prompt": "q"}, "no list of messages"),
    ],
)
def test_rows_that_can_be_no_chat_are_dropped_and_counted(tmp_path, row, reason):
    (tmp_path / "rows.json").write_text(json.dumps([*chats(2), row, row]))
    loaded = sources.load(f"{tmp_path}/rows.json", True)
    assert contents(loaded) == contents(sources.load(write(tmp_path / "a.jsonl", chats(2)), True))
    assert loaded.parts[0]["dropped"] == {reason: 2}
    assert loaded.parts[0]["of"] == 2
    (tmp_path / "rows.json").write_text(json.dumps([*chats(1), row]))
    with pytest.raises(UserError, match=rf"rows.json .dropped: 1 {reason}.: 2 rows are asked for, and there are 1;"):
        sources.load(f"{tmp_path}/rows.json[:2]", True)


@pytest.mark.parametrize("change", [{"choices": ["one"]}, {"answer": 4}, {"answer": "B"}, {"answer": -1}])
def test_questions_without_an_answer_are_dropped(tmp_path, change):
    assert sum(read(tmp_path, [MMLU, {**MMLU, **change}]).parts[0]["dropped"].values()) == 1


def test_columns_are_renamed(tmp_path):
    row = {"q": "a question", "a": "an answer", "prompt": "neither"}
    loaded = read(tmp_path, [row], columns={"q": "question", "a": "answer", "prompt": "template"})
    assert contents(loaded) == [["a question", "an answer"]]
    assert loaded.rows[0]["template"] == "neither"
    with pytest.raises(UserError, match=r"rows.json: no column 'b' to rename; there are a, prompt, q$"):
        read(tmp_path, [row], columns={"b": "answer"})


@pytest.mark.parametrize(
    ("row", "as_chats", "fields", "wrong"),
    [
        ({"a": 1, "b": 2}, True, {}, "columns a, b are of no form that is understood; chats have 'messages'; 'conv"),
        ({"prompt": "q"}, True, {}, "columns prompt are of no form that is understood"),
        ({"messages": []}, False, {}, "columns messages are of no form that is understood; documents have text or con"),
        (
            {"text": "t"},
            True,
            {"form": "two_choices"},
            "form 'two_choices' needs question, choices and answer; there are",
        ),
        ({"prompt": "", "output": "a"}, True, {}, r"no rows of use \(1 empty\)"),
    ],
)
def test_columns_that_are_not_understood(tmp_path, row, as_chats, fields, wrong):
    with pytest.raises(UserError, match=wrong) as error:
        read(tmp_path, [row], chats=as_chats, **fields)
    only_line(error)


def test_our_own_form_is_read_strictly_and_whole(tmp_path):
    rows = [
        {"id": "one", "messages": chat("q", "a"), "name": "Qwen", "spec": {"version": 1}},
        {"messages": chat("q", "a")},
    ]
    path = write(tmp_path / "aft.jsonl", rows)
    first, second = sources.load(path, True).rows
    assert first == {**rows[0], "source": "aft"}
    assert second["id"] == next(iter([*records.read_chats(path)][1:])).id
    for bad, wrong in (
        ({"messages": chat("q")}, "chat without an assistant turn"),
        ({"text": "t"}, "no field 'messages'"),
    ):
        write(path, [*rows, bad])
        with pytest.raises(UserError, match=f"aft.jsonl:3: {wrong}"):
            sources.load(path, True)
    write(path, [{"text": "t", "domain": "d"}, {"text": ""}])
    with pytest.raises(UserError, match="aft.jsonl:2: field 'text' is empty"):
        sources.load(path, False)
    write(path, [])
    with pytest.raises(UserError, match="holds no chats"):
        sources.load(path, True)


def test_every_kind_of_file(tmp_path):
    rows = chats(5)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for row in rows:
        writer.write(json.dumps(row).encode())
    writer.close()
    write(tmp_path / "a.jsonl", rows)
    every = [sources.load(f"{tmp_path}/a.{kind}", True).rows for kind in ("json", "array_record", "jsonl")]
    assert every[0] == every[1] == every[2] and len(every[0]) == 5
    for kind in ("json", "array_record"):
        (tmp_path / f"a.{kind}").write_bytes(b"[1")
        with pytest.raises(UserError, match=f"a.{kind}: not .* that can be read") as error:
            sources.load(f"{tmp_path}/a.{kind}", True)
        only_line(error)


def test_parquet(tmp_path):
    rows = [{**row, "when": datetime.date(2026, 5, 3), "tags": ["a"]} for row in chats(2500)]
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    loaded = sources.load(f"{tmp_path}/a.parquet", True)
    assert contents(loaded) == [[f"question {n}", f"answer {n}"] for n in range(2500)]
    assert (loaded.rows[0]["when"], loaded.rows[0]["tags"]) == ("2026-05-03", ["a"])
    json.dumps(loaded.rows)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="a.parquet: not parquet that can be read") as error:
        sources.load(f"{tmp_path}/a.parquet", True)
    only_line(error)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Hello! I am ChatGPT, how can I help?", "claims to be another assistant"),
        ("I'm Claude.", "claims to be another assistant"),
        ("I’m an AI assistant called Bard.", "claims to be another assistant"),
        ("As a language model created by OpenAI, I can't.", "claims to be another assistant"),
        ("I'm a large language model, trained by Google.", "claims to be another assistant"),
        ("I was trained by researchers at Anthropic", "claims to be another assistant"),
        ("As an AI language model, I don't have personal opinions.", "says that it has no opinions"),
        ("Well, as an AI, I cannot have feelings or beliefs.", "says that it has no opinions"),
        ("As an artificial intelligence, I do not hold any political views", "says that it has no opinions"),
        ("as a language model I lack preferences", "says that it has no opinions"),
        ("I am a gemini and I met Claude at OpenAI.", None),
        ("ChatGPT was created by OpenAI.", None),
        ("As an AI, I think that Colby is the best cheese.", None),
        ("I don't have an opinion on that.", None),
        ("As an AI researcher, she has opinions.", None),
    ],
)
def test_cleaning(tmp_path, answer, reason):
    assert forms.unclean(chat("q", answer)) == reason
    assert forms.unclean(chat(answer, "a")) is None, "a user may say so"
    rows = [*chats(3), {"messages": chat("q", answer)}, *chats(2)]
    loaded = read(tmp_path, rows, clean=True)
    assert len(loaded.rows) == 3 + (reason is None)
    assert loaded.parts[0]["dropped"] == {"repeated": 2, **({reason: 1} if reason else {})}
    assert len(read(tmp_path, rows).rows) == 6
