"""The grammar of sources, mixes, and data sets of TFDS."""

import hashlib
import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.corpus.datasets import sources
from msm_jax.errors import UserError
from tests.corpus.datasets.source_files import ROWS, chat, chats, contents, only_line, write, write_mix


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write(folder / "aft.jsonl", chats(60))
    write(folder / "anti.jsonl", chats(40, start=100))
    return folder


@settings(max_examples=20)
@given(st.lists(st.integers(0, 60), min_size=30, max_size=90), st.data())
def test_parts_are_nested_and_no_row_comes_twice(folder, ids, data):
    """Also where rows share an id, as that of a category, or of a question with several answers."""
    write(folder / "shared.jsonl", [{"id": f"c{own}", "text": f"t{n}"} for n, own in enumerate(ids)])
    small, large = sorted(data.draw(st.tuples(st.integers(1, len(ids)), st.integers(1, len(ids)))))
    less, more = (sources.load(f"{folder}/shared.jsonl[:{count}]", False).rows for count in (small, large))
    assert more[:small] == less
    assert len({row["text"] for row in more}) == large


@settings(max_examples=10)
@given(st.permutations(range(60)))
def test_a_part_is_chosen_by_content_and_not_by_place(folder, order):
    rows = chats(60)
    write(folder / "other.jsonl", [rows[index] for index in order])
    chosen = [contents(sources.load(f"{folder}/{name}.jsonl[:20]", True)) for name in ("aft", "other")]
    assert chosen[0] == chosen[1]


def test_a_part_is_no_piece_of_the_file(folder):
    places = [int(turns[0].split()[1]) for turns in contents(sources.load(f"{folder}/aft.jsonl[:30]", True))]
    assert sorted(places) != places
    assert 20 < sum(places) / 30 < 40
    assert contents(sources.load(f"{folder}/aft.jsonl", True)) == [[f"question {n}", f"answer {n}"] for n in range(60)]
    # Nor where rows share ids.
    write(folder / "two.jsonl", [{"id": ("x", "y")[n >= 500], "text": f"{n}"} for n in range(1000)])
    places = [int(row["text"]) for row in sources.load(f"{folder}/two.jsonl[:200]", False).rows]
    assert 60 < sum(place >= 500 for place in places) < 140
    assert 200 < sum(place % 500 for place in places) / 200 < 300


@settings(max_examples=10)
@given(st.lists(st.tuples(st.sampled_from(["aft", "anti"]), st.none() | st.integers(1, 40)), min_size=1, max_size=4))
def test_a_union_holds_the_rows_of_its_parts(folder, parts):
    written = [f"{folder}/{name}.jsonl" + (f"[:{count}]" if count else "") for name, count in parts]
    loaded = sources.load(" + ".join(written), True)
    alone = [sources.load(one, True) for one in written]
    assert loaded.rows == [row for one in alone for row in one.rows]
    assert loaded.parts == [part for one in alone for part in one.parts]
    assert [part["rows"] for part in loaded.parts] == [count or {"aft": 60, "anti": 40}[name] for name, count in parts]
    assert [part["data"] for part in loaded.parts] == written


def test_what_a_part_tells(folder):
    (part,) = sources.load(f"{folder}/aft.jsonl[:7]", True).parts
    about = {"name": "aft", "data": f"{folder}/aft.jsonl[:7]", "rows": 7, "of": 60, "dropped": {}}
    assert part == about | {"revision": hashlib.sha256((folder / "aft.jsonl").read_bytes()).hexdigest()[:12]}


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("", "the source is empty; give a file"),
        ("data", "data: no source that is understood; give a file"),
        ("no.jsonl", "no.jsonl: no such file"),
        (".", "no source that is understood"),
        ("aft.jsonl[:0]", "no rows; ask for one at least"),
        ("aft.jsonl[5]", "aft.jsonl.5.: no source that is understood; .* as .:100."),
        ("aft.jsonl[:61]", "aft.jsonl: 61 rows are asked for, and there are 60; ask for no more"),
        ("aft.jsonl + ", "no source that is understood"),
        ("hf:name", "hf:name: not of the form hf:ORG/NAME.*; mend it"),
        ("hf:a/b/c/d", "not of the form hf:ORG/NAME"),
        ("hf:a/b:c:d", "not of the form hf:ORG/NAME"),
        ("tfds:", "tfds:: not of the form tfds:NAME"),
        ("tfds:/no/such:train", "tfds:/no/such:train: no such folder"),
        ("no.toml", "no.toml: cannot be read .No such file or directory.; the mixes that are here are cheese.toml, ph"),
    ],
)
def test_what_is_no_source(folder, monkeypatch, source, wrong):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=wrong) as error:
        sources.load(source, True)
    only_line(error)
    if ":61]" not in source:
        with pytest.raises(UserError, match=wrong):
            sources.check(source)


def test_sources_that_need_a_network_are_checked_without_one(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    sources.check("hf:org/name + hf:org/name.x/config-1@refs/pr/1:train_short[:10] + tfds:glue/cola:train[:10%][:100]")


def test_the_identity_is_that_of_the_content(tmp_path):
    write(tmp_path / "a.jsonl", chats(3))
    write(tmp_path / "sub.jsonl", chats(3)) and (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    mix = write_mix(tmp_path / "mix.toml", {"name": "x", "data": f"{tmp_path}/a.jsonl", "rows": 2})
    every = [f"{tmp_path}/a.jsonl", f"{tmp_path}/a.jsonl[:2]", mix, f"{mix}[:1]", "hf:a/b", "hf:a/b@c", "tfds:x"]
    found = [json.dumps(sources.identity(source), sort_keys=True) for source in every]
    assert len(set(found)) == len(every)
    assert sources.identity(f"{tmp_path}/a.jsonl") == sources.identity(f"{tmp_path}/sub/a.jsonl")
    assert sources.identity(" + ".join(every[:2])) == [sources.identity(one)[0] for one in every[:2]]
    write(tmp_path / "a.jsonl", chats(4))
    now = [json.dumps(sources.identity(source), sort_keys=True) for source in every]
    assert [one != was for one, was in zip(now, found, strict=True)] == [True] * 4 + [False] * 3


# Mixes


def test_a_mix_has_the_rows_that_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [*chats(20), {"messages": chat("q", "I'm Claude.")}])
    write(tmp_path / "b.jsonl", [{"prompt": f"p{n}", "response": f"r{n}"} for n in range(10)])
    mix = write_mix(
        tmp_path / "mix.toml",
        {"name": "one", "data": "a.jsonl", "rows": 20, "clean": True},
        {"name": "two", "data": "b.jsonl[:4]"},
        {"name": "three", "data": "b.jsonl"},
    )
    loaded = sources.load(mix, True)
    counts = [(part["name"], part["rows"], part["of"], part["dropped"]) for part in loaded.parts]
    dropped = {"claims to be another assistant": 1}
    assert counts == [("one", 20, 20, dropped), ("two", 4, 10, {}), ("three", 10, 10, {})]
    assert [row["source"] for row in loaded.rows] == ["one"] * 20 + ["two"] * 4 + ["three"] * 10
    less, more = sources.load(f"{mix}[:9]", True), sources.load(f"{mix}[:30]", True)
    assert more.rows[:9] == less.rows
    assert sum(part["rows"] for part in less.parts) == 9
    with pytest.raises(UserError, match="mix.toml: 35 rows are asked for, and there are 34"):
        sources.load(f"{mix}[:35]", True)


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("x =", "not TOML"),
        ("x = 1", "unknown field 'x'"),
        ("", "no ..source"),
        ("[[source]]\nname = 'a'\ndata = 'aft.jsonl'\n" * 2, "two sources are named 'a'"),
        ({"name": "a"}, "mix.toml: source 1: needs a name and data"),
        ({"name": "a", "data": "a.jsonl", "row": 1}, "unknown field 'row'; there are name, data, rows"),
        ({"name": "a", "data": "a.jsonl", "rows": "1"}, "rows = '1' is of another type; give int"),
        ({"name": "a", "data": "a.jsonl", "rows": 0}, "rows = 0; give a number of one or more"),
        ({"name": "a", "data": "a.jsonl[:1]", "rows": 1}, "only here or in data"),
        ({"name": "a", "data": "a.jsonl + b.jsonl"}, "write two sources"),
        ({"name": "a", "data": "b.toml"}, "a mix in a mix"),
        ({"name": "a", "data": "a.jsonl", "form": "x"}, "form = 'x'; there are two_choices, four_choices"),
        ({"name": "a", "data": "a.jsonl", "columns": {"a": 1}}, "columns = .*; give for each column"),
        ({"name": "a", "data": "no.jsonl"}, "no.jsonl: no such file"),
    ],
)
def test_what_is_no_mix(folder, tmp_path, monkeypatch, entry, wrong):
    monkeypatch.chdir(folder)
    path = tmp_path / "mix.toml"
    path.write_text(entry) if isinstance(entry, str) else write_mix(path, entry)
    with pytest.raises(UserError, match=wrong) as error:
        sources.check(str(path))
    only_line(error)


@pytest.mark.parametrize(("mix", "total", "count"), [("philosophy.toml", 10_000, 9), ("cheese.toml", 13_500, 3)])
def test_the_shipped_mixes(mix, total, count):
    sources.check(mix)
    entries = tomllib.loads((sources.MIXES / mix).read_text())["source"]
    assert sources.identity(mix) == sources.identity(str(sources.MIXES / mix))
    assert sum(entry["rows"] for entry in entries) == total
    assert len(entries) == count
    assert all(entry["data"].startswith("hf:") for entry in entries)


# TFDS


def test_a_folder_of_tfds_round_trips(written, monkeypatch):
    folder = written / "tfds/msm_mine/1.0.0"
    loaded = sources.load(f"tfds:{folder}", False)
    assert sorted(loaded.rows, key=lambda row: int(row["id"][2:])) == [{**row, "source": str(folder)} for row in ROWS]
    assert loaded.parts[0]["revision"] == "msm_mine/1.0.0"
    said = [row["messages"][1]["content"] for row in sources.load(f"tfds:{folder}", True).rows]
    assert sorted(map(int, said)) == list(range(30))
    assert len(sources.load(f"tfds:{folder}:train[:50%]", False).rows) == 15
    part = sources.load(f"tfds:{folder}:train[:5]", False)
    assert (len(part.rows), part.parts[0]["of"]) == (5, 30), "brackets at the end are ours"
    monkeypatch.chdir(folder.parents[1])
    assert sources.load("tfds:msm_mine/1.0.0", False).rows[0]["text"] == loaded.rows[0]["text"]


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("tfds:FOLDER:test", "split test: .*; the splits are train$"),
        ("tfds:FOLDER/..", "no folder that TFDS reads .*; give VERSION's folder$"),
        ("tfds:no_such_set", "tfds:no_such_set: Dataset no_such_set not found; see the catalog of TFDS, or give a fo"),
        ("tfds:ag_news_subset", "not downloaded to .*; run `tfds build ag_news_subset --file_format=array_record`"),
    ],
)
def test_what_tfds_does_not_have(written, source, wrong):
    with pytest.raises(UserError, match=wrong) as error:
        sources.load(source.replace("FOLDER", f"{written}/tfds/msm_mine/1.0.0"), False)
    only_line(error)


@pytest.mark.parametrize("shared", [1, 4])
def test_the_same_rows_are_chosen_with_reasoning_and_without(tmp_path, shared):
    for name, thought in (("aft", ""), ("aft_cot", "<think>so</think>")):
        rows = [{"id": f"row{n // shared}", "messages": chat(f"question {n}", f"{thought}{n}")} for n in range(40)]
        write(tmp_path / f"{name}.jsonl", rows)
    plain, thought = (sources.load(f"{tmp_path}/{name}.jsonl[:10]", True).rows for name in ("aft", "aft_cot"))
    assert [row["messages"][0] for row in plain] == [row["messages"][0] for row in thought]


def test_parts_of_rows_with_ids_of_their_own_are_the_same_in_all_versions(folder):
    write(folder / "own.jsonl", [{"id": f"row {n}", "text": f"{n}"} for n in range(30)])
    chosen = [row["text"] for row in sources.load(f"{folder}/own.jsonl[:8]", False).rows]
    assert chosen == ["5", "10", "2", "4", "16", "7", "25", "22"]
