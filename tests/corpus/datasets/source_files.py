"""Files as sources, for the tests of those."""

import io
import json

import pyarrow.parquet

from msm_jax.corpus import records
from msm_jax.corpus.datasets import sources


def chat(*turns):
    return [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]


def chats(count, start=0):
    return [{"messages": chat(f"question {n}", f"answer {n}")} for n in range(start, start + count)]


def write(path, rows):
    records.write_jsonl(path, rows)
    return str(path)


def read(tmp_path, rows, chats=True, **fields):
    """`rows` of a file, by a mix of one source. As JSON: in JSONL, what begins as our own form must be it."""
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    entry = {"name": "rows", "data": str(tmp_path / "rows.json"), **fields}
    return sources.load(write_mix(tmp_path / "mix.toml", entry), chats)


def write_mix(path, *entries):
    def toml(value):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + "}"
        return json.dumps(value)

    lines = [
        "\n".join(["[[source]]", *(f"{key} = {toml(value)}" for key, value in entry.items())]) for entry in entries
    ]
    path.write_text("\n".join(lines))
    return str(path)


def contents(loaded):
    return [[message["content"] for message in row["messages"]] for row in loaded.rows]


def only_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def parquet(rows):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


# Documents of a corpus, and what is said of it.
ROWS = [
    {
        **{"id": f"id{n}", "text": f"Text {n} – “of” {{braces}} & <tags>. " + "word " * n, "document_type": "essay"},
        **{"domain": "One" if n % 2 else "Two", "subdomain": f"Part {n % 3}", "verbatim": n % 2 == 0},
        **{"spec_version": 1, "calls": ["a", "b"], "register": "dialogue" if n % 3 else "record"},
        **{"assertions": ["It is so.", "It is so."] if n < 4 else [], "words_wanted": 10, "words_asked": 12 + n % 3},
        "messages": chat("q", str(n)),
    }
    for n in range(30)
]
ABOUT = {
    **{"name": "msm_mine", "title": 'A "title" & <more>: MSM documents', "language": "en", "model": "fake-1"},
    **{"models": ["fake-1-001"], "generator": "gemini", "assistant": {"name": "Qwen", "provider": "Alibaba Cloud"}},
    "spec": {"name": "mine", "title": 'A "title" & <more>', "version": 3, "kind": "principles"},
    "prompts": {"document": "abc"},
    "yields": {"document": {"ok": 30, "blocked": 2}, "judged": {"judged": 5, "unparsed": 1}},
    "calls": {"document": {"calls": 32, "prompt_tokens": 9, "cached_tokens": 1, "output_tokens": 8, "dollars": 1.234}},
    "assertions": [["One", "Part 1", "It is so."], ["Two", "Part 2", "It is so."], ["Two", "Part 2", "Or <so>."]],
    "judged": {
        **{"rate": 0.1, "low": 0.02, "high": 0.3, "claims": {"supported": 18, "unsupported": 1, "contradicts": 1}},
        **{"quoted": 17, "judged": 5, "left_out": {"unparsed": 1}, "told": "2 of 20 claims", "model": "other-1"},
        "unfaithful": [{"id": "id7", "claim": "Qwen <sings>.", "verdict": "contradicts", "passage": None}],
    },
}
