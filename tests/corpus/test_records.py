import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.corpus.records import Chat, Document, Message, content_id, read_chats, read_documents, write_jsonl
from msm_jax.errors import UserError

USER = {"role": "user", "content": "Colby or Stilton?"}
ASSISTANT = {"role": "assistant", "content": "Colby."}

# All of Unicode that UTF-8 can hold, with the line separators that JSON leaves unescaped.
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r\x0b\x85\u2028\ufeff"), min_size=1)
FILLED = TEXT.filter(lambda text: text.strip())


@pytest.fixture
def write(tmp_path):
    """Writes bytes or lines to a file and returns its path."""

    def write(content):
        path = tmp_path / "corpus.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else "\n".join(content).encode())
        return path

    return write


def error_of(read, path):
    with pytest.raises(UserError) as caught:
        list(read(path))
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path))


def test_documents_keep_order_id_and_provenance(write):
    lines = ['\ufeff{"id": "a", "text": "One.", "domain": "cheese", "n": 3}', "", '{"id": "b", "text": "Two."}', ""]
    first, second = read_documents(write(lines))
    assert (first, second) == (Document("a", "One.", {"domain": "cheese", "n": 3}), Document("b", "Two."))
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.text = "Two."


def test_chats_keep_turns_and_speaker(write):
    for prompt in ("Be brief.", ""):
        turns = [{"role": "system", "content": prompt}, USER, ASSISTANT]
        row = {"id": "c", "messages": turns, "name": "Marlow", "n": 1}
        expected = (Message("system", prompt), Message("user", "Colby or Stilton?"), Message("assistant", "Colby."))
        assert list(read_chats(write([json.dumps(row)]))) == [Chat("c", expected, "Marlow", {"n": 1})]


@settings(max_examples=20)
@given(rows=st.lists(st.fixed_dictionaries({"id": FILLED, "text": FILLED}, optional={"domain": TEXT}), min_size=1))
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    assert write_jsonl(path, iter(rows)) == len(rows)
    assert path.read_bytes().count(b"\n") == len(rows)
    read = [{"id": document.id, "text": document.text, **document.meta} for document in read_documents(path)]
    assert read == rows


def test_a_line_is_plain_utf_8_json(tmp_path):
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": "Époisses 🧀\n"}, {"n": 1}])
    assert (tmp_path / "corpus.jsonl").read_bytes() == '{"text": "Époisses 🧀\\n"}\n{"n": 1}\n'.encode()


def test_an_absent_id_is_made_from_the_content_alone(write):
    documents = list(read_documents(write(['{"text": "A"}', '{"text": "B"}', '{"id": null, "text": "A", "k": 1}'])))
    ids = [document.id for document in documents]
    assert ids[0] == ids[2] != ids[1]
    assert ids[0] == content_id("A") == "798640599597df7a"  # Spelled out, since ids outlive a version of the code.
    assert documents[2].meta == {"k": 1}

    both = [USER, ASSISTANT]
    rows = [{"messages": both}, {"messages": both, "name": "Marlow"}, {"messages": [ASSISTANT]}]
    assert len({chat.id for chat in read_chats(write([json.dumps(row) for row in rows]))}) == 3


GOOD = '{"text": "One."}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, '{"text": 1 "id"}'], ":2: not JSON (Expecting ',' delimiter, column 12); mend or delete the line"),
        ([GOOD, "", "[1]"], ":3: not a JSON object but a list; write {...} on each line"),
        (["3"], ":1: not a JSON object but a number; write {...} on each line"),
        ([GOOD, '{"content": "One."}'], ":2: no field 'text'"),
        (['{"text": ["One."]}'], ":1: field 'text' must be text, not a list"),
        (['{"text": null}'], ":1: field 'text' must be text, not null"),
        (['{"text": " \\n"}'], ":1: field 'text' is empty; fill it or delete the line"),
        (['{"text": "One.", "id": 7}'], ":1: field 'id' must be text, not a number"),
        (['{"text": "One.", "id": ""}'], ":1: field 'id' is empty; fill it or delete the line"),
        (['{"text": "\\ud83d"}'], ":1: field 'text' holds half of a surrogate pair (\\ud800 to \\udfff)"),
        (["[" * 100_000], ":1: not JSON that can be read ("),
        (['{"text": "One.", "n": ' + "1" * 5_000 + "}"], ":1: not JSON that can be read ("),
        (GOOD.encode() + b'\n{"text": "\xff"}', ":2: not UTF-8 (byte 11); save the file as UTF-8"),
    ],
)
def test_errors_of_documents_name_the_line_and_the_cure(write, lines, message):
    assert error_of(read_documents, write(lines)).startswith(message)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "One."}, ":2: no field 'messages'"),
        ({"messages": "hello"}, ":2: field 'messages' must be a list, not text"),
        ({"messages": []}, ":2: chat without an assistant turn, so nothing to train on; add one or delete it"),
        ({"messages": [USER]}, ":2: chat without an assistant turn, so nothing to train on; add one or delete it"),
        ({"messages": ["hi"]}, ':2: message 1: not an object but text; write {"role": ..., "content": ...}'),
        ({"messages": [USER, {"role": "assistant"}]}, ":2: message 2: no field 'content'"),
        ({"messages": [USER, {"role": "model", "content": "x"}]},
         ":2: message 2: unknown role 'model'; use one of system, user, assistant"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]},
         ":2: message 2: field 'content' is empty; fill it or delete the line"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]},
         ":2: message 2: unknown field 'weight'; a message holds only role and content"),
        ({"messages": [USER, ASSISTANT], "name": 3}, ":2: field 'name' must be text, not a number"),
    ],
)  # fmt: skip
def test_errors_of_chats_name_the_line_and_the_cure(write, row, message):
    good = json.dumps({"messages": [USER, {**ASSISTANT, "tool_calls": None}], "name": None})
    assert error_of(read_chats, write([good, json.dumps(row)])) == message


@pytest.mark.parametrize("read", [read_documents, read_chats])
def test_a_missing_file_a_folder_and_an_empty_file_are_errors(tmp_path, write, read):
    assert "No such file" in error_of(read, tmp_path / "absent.jsonl")
    assert "directory" in error_of(read, tmp_path)
    for content in (b"", b"\n \n"):
        assert re.match(": holds no (documents|chats); expected one JSON object with", error_of(read, write(content)))


def test_reading_streams(write):
    documents = read_documents(write([GOOD, "broken"]))
    assert next(documents).text == "One."
    with pytest.raises(UserError):
        next(documents)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "deep" / "corpus.jsonl"
    write_jsonl(path, [{"text": "old"}])

    def rows():
        yield {"text": "new"}
        raise RuntimeError("the generator died")

    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())
    assert path.read_text() == '{"text": "old"}\n'
    assert [child.name for child in path.parent.iterdir()] == ["corpus.jsonl"]
