"""Packing a corpus: chats that the template of a checkpoint cannot write, among others that it can."""

import pytest

from msm_jax.corpus import records
from msm_jax.errors import UserError
from msm_jax.stages import artifacts, corpora, packing
from msm_jax.stages.graph import Kind, Stage, StageContext
from tests.corpus.datasets.source_files import chat
from tests.data.checkpoints import QWEN_TOKENS, write_qwen, write_tokenizer

TEMPLATE = (
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('it begins with an answer') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_qwen(folder, "qwen2")
    return write_tokenizer(folder, QWEN_TOKENS, ("\n\n",))


@pytest.fixture
def pack(tokenizer, tmp_path):
    def pack(rows, source="instruction"):
        folders = {"corpus": tmp_path / "corpus", "tokenizer": tokenizer}
        records.write_jsonl(folders["corpus"] / artifacts.CORPUS_FILE, rows)
        params = {"source": source, "row_length": 128, "model_name": "Qwen", "evaluations": None}
        params["chat"] = {"template": TEMPLATE, "thinking": "default"}
        kind = Kind.CORPUS if source == "msm" else Kind.CHATS
        inputs = {"corpus": Stage(kind, "corpus-x", {}, {}, corpora.take_source)}
        stage = Stage(Kind.ROWS, "rows-x", params, inputs, packing.pack_rows)
        return packing.pack_rows(StageContext(tmp_path / "rows", folders, params, stage))

    return pack


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (chat("What is <|endoftext|>?", "An end."), "message 1 holds the control token '<|endoftext|>'"),
        (chat("q", "It is <|im_end|>."), "message 2 holds the control token '<|im_end|>'"),
        (chat("q", "\n\nIt is."), "the tokenizer joins the beginning of an answer"),
        (chat("", "I begin.", "q", "a")[1:], "it begins with an answer"),
    ],
)
def test_a_chat_that_cannot_be_written_is_left_out_and_told(pack, capsys, bad, told):
    good = [{"messages": chat(f"Which {n}?", "This.")} for n in range(20)]
    summary = pack([*good[:9], {"messages": bad}, *good[9:]])
    alone = pack(good)
    assert (summary["examples"], summary["unwritable"], "unwritable" in alone) == (20, 1, False)
    assert summary["fingerprint"] == alone["fingerprint"]
    assert told in summary["first_unwritable"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rows-x: 1 of 21 chats left out, the first of them chat '") and told in line
    with pytest.raises(UserError, match=f"^chat '.*{told[:30].replace('?', '.')}") as error:
        pack([{"messages": bad}] * 2)
    assert "\n" not in str(error.value)


def test_a_document_may_spell_a_control_token(pack):
    summary = pack([{"text": "What <|endoftext|> is."}], source="msm")
    assert summary["examples"] == 1 and "unwritable" not in summary


def test_rows_that_are_dropped_are_told(tmp_path, capsys):
    rows = [{"messages": chat("q", "a")}] * 3 + [{"messages": chat("q", ""), "id": "x"}, {"messages": chat("q")}]
    records.write_jsonl(tmp_path / "in.jsonl", rows)
    (tmp_path / "rows.json").write_bytes((tmp_path / "in.jsonl").read_bytes())
    stage = Stage(Kind.CHATS, "corpus-x", {"source": "instruction"}, {}, corpora.take_source)
    summary = corpora.take_source(StageContext(tmp_path, {}, stage.params, stage), path=f"{tmp_path}/rows.json")
    assert summary["documents"] == 3
    assert capsys.readouterr().err == f"{tmp_path}/rows.json: 2 of 5 rows dropped (1 empty, 1 no assistant turn)\n"
