"""Rows of every form, from every kind of file; what chats are cleaned of."""

import datetime
import json

import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msm_jax.corpus import records
from msm_jax.corpus.datasets import forms, sources, tables
from msm_jax.errors import UserError
from tests.corpus.datasets.source_files import chat, chats, contents, only_line, parquet, read, write

SYSTEM = ["s", "q", "a"]
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
        ({"messages": None, "conversations": ["q", "a"], "source": "two columns"}, ["q", "a"]),
        ({"conversations": chat("q", "a")}, ["q", "a"]),
        ({"conversation": [{"role": "User", "content": "q"}, {"role": "ASSISTANT", "content": "a"}]}, ["q", "a"]),
        ({"messages": [{"role": "developer", "content": "s"}, *chat("q", "a")]}, ["s", "q", "a"]),
        ({"messages": [{**turn, "tool_calls": [], "call": {"name": None}} for turn in chat("q", "a")]}, ["q", "a"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, *chat("r", "a")[1:]]}, ["q", "a"]),
        ({"prompt": chat("q"), "completion": chat("", "a")[1:]}, ["q", "a"]),
        ({"prompt": "q", "completion": chat("", "a")[1:]}, ["q", "a"]),
        # What stands beside the turns is a part of the chat.
        ({"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, SYSTEM),
        ({"system_prompt": "s", "question": "q", "response": "a"}, SYSTEM),
        ({"system": "s", "messages": [{"role": "system", "content": "s"}, *chat("q", "a")]}, SYSTEM),
        ({"system": " ", "tools": "[]", "images": [], "messages": chat("q", "a")}, ["q", "a"]),
        ({"messages": chat("q", "a"), "chat_template_kwargs": {"enable_thinking": False, "tools": []}}, ["q", "a"]),
        ({"instruction": "r", "input": "", "output": "b", "history": [["q", "a"]]}, ["q", "a", "r", "b"]),
        ({"instruction": "r", "output": "b", "history": json.dumps([["q", "a"]])}, ["q", "a", "r", "b"]),
        ({"messages": chat("r", "b"), "history": chat("q", "a")}, ["q", "a", "r", "b"]),
        ({"messages": chat("q", "a", "r", "b"), "history": chat("q", "a")}, ["q", "a", "r", "b"]),
        ({"system": "s", "messages": chat("r", "b"), "history": chat("q", "a")}, ["s", "q", "a", "r", "b"]),
        ({"instruction": "q", "context": "c", "response": "a"}, ["q\n\nc", "a"]),
        ({"instruction": "q", "input": " \n", "output": "a"}, ["q", "a"]),
        ({"prompt": "q", "completion": "a"}, ["q", "a"]),
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
    assert roles == (["system"] * (len(turns) % 2) + ["user", "assistant"] * 2)[: len(turns)]
    assert [row["source"] for row in loaded.rows] == ["rows", "rows"]
    assert (loaded.rows[1]["id"], loaded.rows[1]["more"]) == ("mine", 1)
    # It is what the readers of our own form read.
    read_back = records.read_chats(write(tmp_path / "out.jsonl", loaded.rows))
    assert [[turn.content for turn in chat.messages] for chat in read_back] == [turns, turns]


def test_documents_of_every_form(tmp_path):
    for column in ("text", "content"):
        # Parquet has all columns in all rows.
        one = {"text": None, column: "One.", "domain": "d", "name": 3}
        loaded = read(tmp_path, [one, {column: " "}], chats=False, clean=True)
        assert loaded.rows == [{"id": records.content_id("One."), "text": "One.", "domain": "d", "source": "rows"}]
        assert loaded.parts[0]["dropped"] == {"empty": 1}


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
        ({"messages": chat("q", "\ud800")}, "not UTF-8"),
        ({"messages": chat("q", 3)}, "not text"),
        ({"messages": chat("q")}, "no assistant turn"),
        ({"messages": None}, "no list of messages"),
        ({"messages": "not JSON"}, "no list of messages"),
        ({"messages": ["q", "a"]}, "no list of messages"),
        ({"messages": [*chat("q"), {"role": "tool", "content": "t"}]}, "another role than system, user, assistant"),
        ({"messages": [*chat("q"), {"role": "assistant", "content": "a", "calls": [1]}]}, "other fields in a message"),
        ({"prompt": "q"}, "no list of messages"),
        ({"messages": [{"role": ["user"], "content": "q"}]}, "another role than system, user, assistant"),
        ({"messages": {"role": ["user", "assistant"], "content": ["q"]}}, "no list of messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, *chat("", "a")[1:]]}, "not text"),
        ({"messages": chat("q", "a"), "tools": [{"name": "weather"}]}, "'tools' beside the messages would be lost"),
        ({"messages": chat("q", "a"), "tools": '[{"name": "weather"}]'}, "'tools' beside the messages would be lost"),
        ({"messages": chat("<image> q", "a"), "image": "cat.jpg"}, "'image' beside the messages would be lost"),
        ({"messages": chat("q", "a"), "chat_template_kwargs": {"tools": ["t"], "enable_thinking": True}},
         "'chat_template_kwargs' beside the messages would be lost"),
        ({"messages": chat("q", "a"), "label": False}, "'label' is false, so its answer is not wanted"),
        ({"messages": chat("q", "a", "r"), "chosen": "b", "rejected": "c"}, "its last answer is in 'chosen'"),
        ({"messages": [{"role": "system", "content": "t"}, *chat("q", "a")], "system": "s"}, "two system prompts"),
        ({"messages": chat("q", "a"), "history": "once upon a time"}, "no list of messages"),
        *(
            ({**MMLU, **change}, reason)
            for change, reason in [
                ({"choices": ["one"]}, "no choices"),
                ({"choices": ["one", "two", "three", " two."]}, "equal choices"),
                *(({"answer": answer}, "no answer among the choices") for answer in (4, "B", -1, True)),
            ]
        ),
    ],
)  # fmt: skip
def test_rows_that_can_be_no_chat_are_dropped_and_counted(tmp_path, row, reason):
    good = [MMLU, MMLU] if "choices" in row else chats(2)
    (tmp_path / "rows.json").write_text(json.dumps([*good, row, row]))
    loaded = sources.load(f"{tmp_path}/rows.json", True)
    assert contents(loaded) == contents(read(tmp_path, good))
    assert (loaded.parts[0]["dropped"], loaded.parts[0]["of"]) == ({reason: 2}, 2)
    (tmp_path / "rows.json").write_text(json.dumps([good[0], row]))
    with pytest.raises(UserError, match=rf"rows.json .dropped: 1 {reason}.: 2 rows are asked for, and there are 1;"):
        sources.load(f"{tmp_path}/rows.json[:2]", True)


LEAVES = st.none() | st.booleans() | st.integers(0, 3)
LEAVES |= st.sampled_from(["", "q", "\ud800", "[]", "user", "assistant", "system", '[["q", "a"]]', "[1]", "{"])
FIELDS = st.sampled_from(["role", "content", "from", "value", "type", "text", "tool_calls"])
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(FIELDS, v, max_size=3), max_leaves=9)
TURNS = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]) | LEAVES, "content": VALUES})
COLUMNS = (
    "messages conversations prompt instruction question choices answer completion text content input context history "
    "system tools chosen label id name note"
).split()


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(COLUMNS), VALUES | st.lists(TURNS, max_size=3), min_size=1), st.booleans())
def test_whatever_a_row_holds_it_is_read_or_dropped_for_a_reason(tmp_path_factory, row, as_chats):
    try:
        item = forms.reader(row, as_chats, None, {}, "here")(json.loads(json.dumps(row)))
    except (forms.Unusable, UserError):
        return
    path = write(tmp_path_factory.getbasetemp() / "any.jsonl", [item.row])
    (read_back,) = records.read_chats(path) if as_chats else records.read_documents(path)
    assert read_back.id == item.row["id"]


def test_of_two_choices_no_two_say_the_same(tmp_path):
    """MMLU has questions with the right option twice."""
    rows = [{"question": f"{n}?", "choices": ["Aa", "aa", "none", "Aa. "], "answer": 3 * (n % 2)} for n in range(40)]
    rows.append({"question": "q", "choices": ["up", "up", "up"], "answer": 1})
    loaded = read(tmp_path, rows, form="two_choices")
    asked = [turns[0].split("\n")[-2:] for turns in contents(loaded)]
    said = [{line[3:].strip(" .") for line in pair} for pair in asked]
    assert len(said) == 40 and set(map(frozenset, said)) == {frozenset(("Aa", "aa")), frozenset(("Aa", "none"))}
    assert loaded.parts[0]["dropped"] == {"equal choices": 1}


@pytest.mark.parametrize(
    ("row", "as_chats"),
    [
        ({"instruction": "q", "output": "a", "prompt": "### Instruction: q ### Response: a"}, True),
        ({"question": "q", "answer": "4", "solution": "Two and two are four."}, True),
        ({"text": "One.", "content": "Another."}, False),
    ],
)
def test_of_two_columns_for_one_none_is_taken_unasked(tmp_path, row, as_chats):
    first, second = [column for column in row if column not in ("output", "question" if "answer" in row else "")]
    with pytest.raises(UserError, match=r"no rows of use \(1 with .* and .*: rename .* by `columns`") as error:
        read(tmp_path, [row], chats=as_chats)
    assert first in only_line(error) and second in str(error.value)
    assert len(read(tmp_path, [row], chats=as_chats, columns={second: "other"}).rows) == 1
    assert len(read(tmp_path, [{**row, second: row[first]}, {**row, second: None}], chats=as_chats).rows) == 2


def test_columns_are_renamed(tmp_path):
    row = {"q": "a question", "a": "an answer", "prompt": "neither"}
    loaded = read(tmp_path, [row], columns={"q": "question", "a": "answer", "prompt": "template"})
    assert contents(loaded) == [["a question", "an answer"]]
    assert loaded.rows[0]["template"] == "neither"
    with pytest.raises(UserError, match=r"rows.json: no column 'b' to rename; there are a, prompt, q$"):
        read(tmp_path, [row], columns={"b": "answer"})
    with pytest.raises(UserError, match=r"rows.json: there is a column 'prompt' already, .*; rename that"):
        read(tmp_path, [row], columns={"q": "prompt", "a": "answer"})


@pytest.mark.parametrize(
    ("row", "as_chats", "fields", "wrong"),
    [
        ({"a": 1, "b": 2}, True, {}, "columns a, b are of no form that is understood; chats have 'messages'; 'conv"),
        ({"prompt": "q"}, True, {}, "columns prompt are of no form that is understood"),
        ({"messages": []}, False, {}, "columns messages are of no form that is understood; documents have text or con"),
        ({"text": "t"}, True, {"form": "two_choices"}, "form 'two_choices' needs question, choices and answer; there"),
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
    bad = (
        (True, {"messages": chat("q")}, "chat without an assistant turn"),
        (True, {"text": "t"}, "no field 'messages'"),
        (True, {**rows[0], "system": "s"}, "'system' beside the messages would be lost; mend the line or delete it"),
        (True, {**rows[0], "label": False}, "'label' is false.*; mend the line or delete it"),
        (False, {"text": ""}, "field 'text' is empty"),
    )
    for as_chats, row, wrong in bad:
        write(path, [*(rows if as_chats else [{"text": "t"}] * 2), row])
        with pytest.raises(UserError, match=f"aft.jsonl:3: {wrong}") as error:
            sources.load(path, as_chats)
        only_line(error)
    # What begins with a part of the chat elsewhere is of others.
    write(path, [{"messages": chat("q", "a"), "system": "s"}, {"messages": chat("q", "a"), "tools": ["t"]}])
    loaded = sources.load(path, True)
    assert contents(loaded) == [SYSTEM] and list(loaded.parts[0]["dropped"].values()) == [1]
    write(path, [])
    with pytest.raises(UserError, match="holds no chats"):
        sources.load(path, True)


def write_array_record(path, lines):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for line in lines:
        writer.write(line)
    writer.close()


def test_every_kind_of_file(tmp_path):
    rows = chats(5)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    write_array_record(tmp_path / "a.array_record", [json.dumps(row).encode() for row in rows])
    write(tmp_path / "a.jsonl", rows)
    every = [sources.load(f"{tmp_path}/a.{kind}", True).rows for kind in ("json", "array_record", "jsonl")]
    assert every[0] == every[1] == every[2] and len(every[0]) == 5
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    assert sources.load(f"{tmp_path}/a.parquet", True).rows == every[0]
    # As `datasets.to_json` writes it, also of a single row.
    for count in (1, 3):
        lines = [json.dumps(row, indent=2 if count == 1 else None) for row in rows[:count]]
        (tmp_path / "a.json").write_text("\n".join(lines))
        assert sources.load(f"{tmp_path}/a.json", True).rows == every[0][:count]
    for kind, content, wrong in (
        ("json", b"[1", "json: not JSON that can be read .*; mend the file"),
        ("json", b'{"messages": []}\n{"messages"', "json:2: not JSON .*; mend or delete the line"),
        ("json", b"[1]", "json: not a list of objects; write"),
        ("array_record", b"[1", "array_record: not ArrayRecord that can be read"),
        ("parquet", b"PAR1", "parquet: not parquet that can be read .*; fetch it again"),
    ):
        (tmp_path / f"a.{kind}").write_bytes(content)
        with pytest.raises(UserError, match=f"a.{wrong}") as error:
            sources.load(f"{tmp_path}/a.{kind}", True)
        only_line(error)
    for record, wrong in ((b"{", "not JSON"), (b"[1]", "not a JSON object")):
        write_array_record(tmp_path / "a.array_record", [b"{}", record])
        with pytest.raises(UserError, match=f"a.array_record: record 1.*: {wrong}"):
            list(tables.read_rows(tmp_path / "a.array_record"))


@pytest.mark.parametrize("kind", ["string", "binary"])
def test_text_that_is_no_utf8_takes_no_other_row_with_it(tmp_path, kind):
    words = [b"one", b"two \xff", b"three"]
    words = pyarrow.array(words, pyarrow.binary())
    words = pyarrow.Array.from_buffers(getattr(pyarrow, kind)(), 3, words.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": words, "id": ["a", "b", "c"]}), tmp_path / "a.parquet")
    loaded = sources.load(f"{tmp_path}/a.parquet", False)
    assert [(row["text"], row["id"]) for row in loaded.rows] == [("one", "a"), ("three", "c")]
    assert loaded.parts[0]["dropped"] == {"not UTF-8": 1}
    # Nor its own row, in a column that is not trained on.
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", "c"], "note": words}), tmp_path / "a.parquet")
    rows = sources.load(f"{tmp_path}/a.parquet", False).rows
    assert [row["text"] for row in rows] == ["a", "b", "c"] and rows[1]["note"].endswith("\udcff")


def test_half_a_character_in_a_field_that_is_not_trained_on_takes_no_row_with_it(tmp_path):
    for field in ("id", "name"):
        (row,) = read(tmp_path, [{"messages": chat("q", "a"), field: "\ud83d"}]).rows
        key = records.content_id({"messages": [["user", "q"], ["assistant", "a"]], "name": None})
        assert row == {"id": key, "messages": chat("q", "a"), "source": "rows"}
    row = {"messages": chat("q \U0001f600", "a"), "note": "\ud83d"}
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text(json.dumps([row] if name == "a.json" else row))
        write(tmp_path / "out.jsonl", sources.load(f"{tmp_path}/{name}", True).rows)
        (read_back,) = records.read_chats(tmp_path / "out.jsonl")
        assert (read_back.messages[0].content, read_back.meta["note"]) == ("q \U0001f600", "\ud83d")


def test_parquet_holds_what_json_does_not(tmp_path):
    rows = [{**row, "when": datetime.date(2026, 5, 3), "tags": ["a"]} for row in chats(1001)]
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    loaded = sources.load(f"{tmp_path}/a.parquet", True)
    assert contents(loaded) == [[f"question {n}", f"answer {n}"] for n in range(1001)]
    assert (loaded.rows[0]["when"], loaded.rows[0]["tags"]) == ("2026-05-03", ["a"])
    json.dumps(loaded.rows)


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
def test_what_no_assistant_of_its_own_says(answer, reason):
    assert forms.unclean(chat("q", answer)) == reason
    assert forms.unclean(chat("q", answer), "Claude", "ChatGPT", "Bard", "OpenAI", "Google", "Anthropic") == (
        None if reason == "claims to be another assistant" else reason
    )
    assert forms.unclean(chat(answer, "a")) is None, "a user may say so"


def test_cleaning(tmp_path):
    reason = "claims to be another assistant"
    rows = [*chats(3), {"messages": chat("q", "I'm Claude.")}, *chats(2)]
    loaded = read(tmp_path, rows, clean=True)
    assert len(loaded.rows) == 3
    assert loaded.parts[0]["dropped"] == {"repeated": 2, reason: 1}
    assert len(read(tmp_path, rows).rows) == 6
