"""Data sets of a hub: the real huggingface_hub against a small server that stands for it."""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import urllib.parse

import pytest

from msm_jax.corpus.datasets import hub_data
from tests.corpus.datasets.source_files import chats, parquet
from tests.loopback import serving

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("files", "config", "split", "chosen"),
    [
        ("data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet data/test-00000-of-00001.parquet",
         None, None, "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet"),
        ("data/train_clean-00000-of-00001.parquet data/train_clean_nothink-00000-of-00001.parquet",
         None, "train_clean", "data/train_clean-00000-of-00001.parquet"),
        ("data/test-00000-of-00001-3b2e30253805f2bd.parquet train.jsonl",
         None, "test", "data/test-00000-of-00001-3b2e30253805f2bd.parquet"),
        ("train.jsonl test.jsonl README.md dataset_infos.json", None, None, "train.jsonl"),
        ("dataset.jsonl .argilla/settings.json", None, None, "dataset.jsonl"),
        ("data/a/train-00000-of-00001.parquet data/b/train-00000-of-00001.parquet", "b", None,
         "data/b/train-00000-of-00001.parquet"),
        ("a/train.json b/train.json b/dev.json", "b", "dev", "b/dev.json"),
        ("default/train/0000.parquet default/train/0001.parquet other/train/0000.parquet", None, None,
         "default/train/0000.parquet default/train/0001.parquet"),
        ("a_train.jsonl a_test.jsonl b-train.jsonl", "a", None, "a_train.jsonl"),
        ("data/train-00000-of-00001.parquet train.jsonl", None, None, "data/train-00000-of-00001.parquet"),
        ("all/auxiliary_train-00000-of-00001.parquet all/test-00000-of-00001.parquet anatomy/test.parquet",
         "all", "auxiliary_train", "all/auxiliary_train-00000-of-00001.parquet"),
        ("easy.jsonl hard.jsonl", "hard", None, "hard.jsonl"),
    ],
)  # fmt: skip
def test_files_of_a_configuration_and_split(files, config, split, chosen):
    assert hub_data.choose(files.split(), config, split) == chosen.split()


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks for: a commit, its files, and their content. A revision is its own commit, but main."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts = [urllib.parse.unquote(part) for part in self.path.split("?")[0].strip("/").split("/")]
        api = parts[0] == "api"
        name, rest = "/".join(parts[2:4] if api else parts[1:3]), parts[4:] if api else parts[3:]
        self.server.asked.append((name, *rest))
        if name == "org/gated":
            return self.reply(401, headers={"X-Error-Code": "GatedRepo"})
        if name == "org/broken":
            return self.reply(400)
        if name not in self.server.sets:
            return self.reply(404, headers={"X-Error-Code": "RepoNotFound"})
        revisions = self.server.sets[name]
        revision = rest[1] if rest else "main"
        commit = revision if len(revision) == 40 else commit_of(revision)
        files = next((files for own, files in revisions.items() if commit_of(own) == commit), None)
        if files is None:
            return self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        if api and rest[:1] != ["tree"]:
            return self.reply(200, json.dumps({"id": name, "sha": commit, "siblings": []}).encode())
        if api:
            tree = [{"type": "file", "path": path, "size": len(files[path]), "oid": commit} for path in files]
            return self.reply(200, json.dumps(tree).encode())
        content = files["/".join(rest[2:])]
        digest = hashlib.sha1(content).hexdigest()
        self.reply(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": commit})

    do_HEAD = do_GET

    def reply(self, status, content=b"", headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def commit_of(revision):
    return hashlib.sha1(revision.encode()).hexdigest()


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    script = {"set.py": b"", "README.md": b"#"}
    lima = jsonl([{"conversations": ["q", "a"]}, {"conversations": ["q"]}])
    copy = {
        "default/train/0000.parquet": parquet([{"text": "One.", "domain": "d"}]),
        "b/test/0000.parquet": parquet([{"prompt": "q"}]),
    }
    server.sets = {
        "org/chats": {"main": {"data/train.jsonl": jsonl(chats(9)), "data/test.jsonl": jsonl(chats(2, 90)), **script}},
        "org/old": {"main": {"train.jsonl": jsonl(chats(1))}, "v1": {"train.jsonl": jsonl(chats(3))}},
        "org/lima": {"main": {"train.jsonl": lima, **script}},
        "org/many": {"main": {f"{name}/train.json": json.dumps(chats(4)).encode() for name in ("one", "two")}},
        "org/script": {"main": script},
        "org/shards": {"main": {f"data/train-0000{n}-of-00002.parquet": parquet(chats(3, 3 * n)) for n in range(2)}},
        "org/documents": {"main": {"set.py": b"", "data.zip": b""}, "refs/convert/parquet": copy},
    }
    server.asked = []
    with serving(server):
        yield server


PROGRAM = """
import json, sys
from msm_jax.corpus.datasets import sources
from msm_jax.errors import UserError
for source in json.loads(sys.argv[1]):
    try:
        loaded = sources.load(source, "documents" not in source)
        texts = [row.get("text") or row["messages"][-1]["content"] for row in loaded.rows]
        print(json.dumps([texts, *({k: p[k] for k in ("name", "revision", "dropped")} for p in loaded.parts)]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Loads sources in a process of its own, since huggingface_hub reads its variables when it is imported."""
    tmp_path = tmp_path_factory.mktemp("hub")

    def ask(url, *wanted, **environment):
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()},
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path / "hub"),
            **environment,
        }
        command = [sys.executable, "-c", PROGRAM, json.dumps(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        ask.stderr, ask.home = done.stderr, environment["HF_HOME"]
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert all("\n" not in answer for answer in answers if isinstance(answer, str))
        return answers

    return ask


def part(name, revision="main", dropped=None):
    return {"name": name, "revision": commit_of(revision), "dropped": dropped or {}}


def answers(count, start=0):
    return [f"answer {n}" for n in range(start, start + count)]


LOADED = {
    "hf:org/chats": [answers(9), part("org/chats")],
    "hf:org/chats:test": [answers(2, 90), part("org/chats:test")],
    "hf:org/old@v1 + hf:org/old": [answers(3) + answers(1), part("org/old@v1", "v1"), part("org/old")],
    f"hf:org/old@{commit_of('v1')}": [answers(3), part(f"org/old@{commit_of('v1')}", "v1")],
    "hf:org/lima": [["a"], part("org/lima", dropped={"no assistant turn": 1})],
    "hf:org/many/two": [answers(4), part("org/many/two")],
    "hf:org/shards": [answers(6), part("org/shards")],
    "hf:org/documents": [["One."], part("org/documents", "refs/convert/parquet")],
}
REFUSED = {
    "hf:org/documents/b": "columns prompt are of no form that is understood; documents have text or content",
    "hf:org/documents@main": "no parquet, jsonl or json files in this repository; copy it to a file of one of these",
    "hf:org/gated": "gated; accept its licence at URL/datasets/org/gated, set HF_TOKEN to a token of that account",
    "hf:org/nosuch": "no such repository at URL; mend the name (a private one needs HF_TOKEN)",
    "hf:org/old@v9": "this repository has no revision v9; see URL/datasets/org/old/branches",
    "hf:org/broken": "URL answers with an error (400); start again later (whole files are kept), or run `hf download",
    "hf:org/chats:dev": "no split dev; there are test, train",
    "hf:org/many": "choose a configuration, as ORG/NAME/CONFIG; there are one, two",
    "hf:org/many/three": "no configuration three; there are one, two",
    "hf:org/script": "no parquet, jsonl or json files in this repository",
}
NOWHERE = "http://127.0.0.1:9"


def test_sets_of_the_hub_and_what_it_does_not_have(hub, ask):
    found = ask(hub.url, *LOADED, *REFUSED, HF_TOKEN="hf_secret")
    assert found[: len(LOADED)] == list(LOADED.values())
    for (source, wrong), message in zip(REFUSED.items(), found[len(LOADED) :], strict=True):
        where, told = message.split(": ", 1)
        assert source.startswith(where) and told.startswith(wrong.replace("URL", hub.url))
        assert "secret" not in message
    assert ask.stderr.splitlines()[0] == f"Fetching hf:org/chats from {hub.url}"
    # What was fetched is not fetched again.
    hub.asked.clear()
    assert ask(hub.url, "hf:org/chats") == [LOADED["hf:org/chats"]]
    assert ask.stderr == ""
    assert {asked[1] for asked in hub.asked if asked[1:]} <= {"revision", "tree"}
    # Without the hub, the cache is enough; but the only one that is cached may not be the only one.
    cached = ["hf:org/chats", "hf:org/chats:test", "hf:org/many/two", f"hf:org/old@{commit_of('v1')}", "hf:org/shards"]
    found = ask(NOWHERE, *cached, "hf:org/many/one", "hf:org/many", HF_HUB_OFFLINE="1")
    assert found[:-2] == [LOADED[source] for source in cached]
    assert found[-2] == found[-1]
    assert found[-1].startswith("hf:org/many: not (whole) in the cache, and HF_HUB_OFFLINE is set; unset it, or run `")
    # A part of a set is no set.
    next(pathlib.Path(ask.home).rglob("train-00001-of-00002.parquet")).unlink()
    (message,) = ask(NOWHERE, "hf:org/shards")
    assert message.startswith(f"hf:org/shards: {NOWHERE} cannot be reached (")
