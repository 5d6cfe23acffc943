"""Models from folders, URLs and a hub: the real huggingface_hub against a small server that stands for it."""

import functools
import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys

import fsspec
import numpy as np
import pytest

from msm_jax.checkpoints.sources import copy_small_files, resolve, small_files, split_revision
from msm_jax.checkpoints.tensor_files import write_tensors
from msm_jax.errors import UserError
from tests.loopback import serving

ROOT = pathlib.Path(__file__).parents[2]
COMMIT = "a" * 40
FILES = {
    **{"config.json": b'{"model_type": "llama"}', "tokenizer.json": b'{"model": {}}', "merges.txt": b"a b"},
    **{name: b"{}" for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")},
    **{"chat_template.jinja": b"{{ messages }}", "tokenizer.model": bytes(range(256)), "LICENSE": b"Apache"},
}
LEFT_OUT = {
    **{"README.md": b"#", "pytorch_model.bin": b"pickle", "consolidated.00.pth": b"pickle", "model.gguf": b"GGUF"},
    **{"consolidated.safetensors": b"a copy", "original/params.json": b"{}", "original/model.safetensors": b""},
    **{"onnx/config.json": b"{}"},
}
REFUSED = {
    "org/gated": (401, {"X-Error-Code": "GatedRepo"}),
    "org/broken": (400, {}),
    "org/denied": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
}


@functools.cache
def weights(seed=0):
    """model.safetensors of 24 MB: the library keeps what it has of a file in steps of 10 MB."""
    array = np.random.default_rng(seed).standard_normal((1000, 6000), np.float32)
    write_tensors("memory://for_hub", [(f"weight{seed or ''}", array.shape, array.dtype, lambda: array)])
    return fsspec.filesystem("memory").cat_file("/for_hub/model.safetensors")


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks for: a commit, its files, and their content, by ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub = self.server
        path = self.path.split("?")[0]
        hub.requests.append((self.command, path, self.headers.get("Range")))
        hub.tokens.add(self.headers.get("Authorization"))
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name in REFUSED and not (name == "org/gated" and parts[0] == "api"):  # it can be seen without access
            status, headers = REFUSED[name]
            return self.reply(status, headers=headers)
        if name not in hub.repositories:
            return self.reply(404, headers={"X-Error-Code": "RepoNotFound"})
        files = hub.repositories[name]
        if parts[0] == "api" and parts[4:5] in ([], ["revision"]):
            if parts[5:] and parts[5] not in ("main", COMMIT):
                return self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
            return self.reply(200, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
        if parts[0] == "api" and parts[4] == "tree":
            tree = [{"type": "file", "path": k, "size": len(v), "oid": digest(v)} for k, v in files.items()]
            return self.reply(200, json.dumps(tree).encode())
        content = files["/".join(parts[4:])]
        headers = {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.reply(206 if wanted else 200, content[start:], headers)

    do_HEAD = do_GET

    def reply(self, status, content=b"", headers=None):
        self.send_response(status)
        fields = {"Content-Length": str(len(content)), "Content-Type": "text/plain", **(headers or {})}
        for key, value in fields.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            drops = self.server.drops.get(self.path.rsplit("/", 1)[-1])
            drop = drops.pop() if drops else None
            self.wfile.write(content[:drop])
            self.close_connection = drop is not None

    def log_message(self, *_):
        pass


def digest(content):
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub():
    """`repositories`: name -> files; `drops`: file -> bytes after which each of its next connections breaks."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories = {
        "org/model": FILES | LEFT_OUT | {"model.safetensors": weights()},
        "org/gated": FILES | {"model.safetensors": weights()},
        "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    }
    server.requests, server.tokens, server.drops = [], set(), {}
    with serving(server):
        yield server


PROGRAM = """
import json, sys
from msm_jax.errors import UserError
from msm_jax.checkpoints.sources import resolve
for path, revision in json.loads(sys.argv[1]):
    try:
        print(json.dumps(["ok", resolve(path, revision)]))
    except UserError as error:
        print(json.dumps(["error", str(error)]))
"""


@pytest.fixture
def ask(tmp_path):
    """Resolves paths in a process of its own, since huggingface_hub reads its variables when it is imported."""

    def ask(url, *paths, **environment):
        calls = json.dumps([path if isinstance(path, tuple) else (path, None) for path in paths])
        command = [sys.executable, "-c", PROGRAM, calls]
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING_FACE")) and "proxy" not in name.lower()
        }
        environment = ours | {
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path / "hub"),
            **environment,
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        ask.stderr = done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert all("\n" not in text for _, text in answers)
        return answers if len(answers) > 1 else answers[0]

    return ask


def test_a_model_of_the_hub(hub, ask):
    result, folder = ask(hub.url, "org/model")
    assert result == "ok"
    there = {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}
    assert there == FILES | {"model.safetensors": weights()}
    assert small_files(folder) == FILES
    assert ask.stderr == f"Fetching org/model from {hub.url}\n"

    # Again, nothing is fetched; without the hub, the cache is enough.
    hub.requests.clear()
    assert ask(hub.url, "org/model") == ["ok", folder]
    assert {(method, "/resolve/" in path) for method, path, _ in hub.requests} == {("GET", False)}
    assert ask.stderr == ""
    hub.requests.clear()
    assert ask(hub.url, "org/model", ("org/model", COMMIT), HF_HUB_OFFLINE="1") == [["ok", folder]] * 2
    assert ask("http://127.0.0.1:9", "org/model") == ["ok", folder]
    assert hub.requests == []

    # Caches of older libraries lack the list of a commit's files; one that holds all weights will do.
    for path in pathlib.Path(folder).parents[1].glob("trees/*"):  # of huggingface_hub 1.33 and later
        path.unlink()
    assert ask(hub.url, ("org/model", COMMIT), HF_HUB_OFFLINE="1") == ["ok", folder]
    pathlib.Path(folder, "model.safetensors").unlink()
    result, message = ask(hub.url, ("org/model", COMMIT), HF_HUB_OFFLINE="1")
    assert result == "error" and "HF_HUB_OFFLINE is set" in message


@pytest.mark.parametrize("gives", ["folder", "error"])
@pytest.mark.parametrize("asked", ["reached", "not reached"])
def test_a_part_of_a_model_is_no_model(tmp_path, monkeypatch, gives, asked):
    """Versions of the library differ in whether they give what the cache holds where the hub does not answer."""
    import huggingface_hub

    config = tmp_path / "config.json"
    for name in ("config.json", "model-1-of-2.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    def answer(*args, **kwargs):
        if gives == "error":
            raise ConnectionError("gone")
        return str(tmp_path)

    def ask(*args, **kwargs):
        if asked == "not reached":
            raise ConnectionError("gone")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: str(config))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    if (gives, asked) == ("folder", "reached"):  # what is missing is named when the weights are opened
        assert resolve("org/model", COMMIT) == str(tmp_path)
    else:
        with pytest.raises(UserError, match="org/model: .*cannot be reached .ConnectionError."):
            resolve("org/model", COMMIT)
    assert resolve("org/model", COMMIT, weights=False) == str(tmp_path), "what is small is there"


def test_what_cannot_be_had_from_the_hub(hub, ask, tmp_path):
    (tmp_path / "models").mkdir()
    told = {
        "org/gated": f"gated; accept its licence at {hub.url}/org/gated, set HF_TOKEN to a token",
        "org/nosuch": f"no such folder here, and no such repository at {hub.url}; mend the name",
        "org/model": f"this repository has no revision v9; see {hub.url}/org/model/branches",
        "org/pickled": "no safetensors in this repository, and pickled weights are never read; choose another",
        "org/broken": f"no such folder here, and {hub.url} answers with an error (400); start again later (whole files "
        "are kept), or run `hf download org/broken --local-dir models/broken` where that works",
        "org/denied": f"{hub.url} refuses (401); see that HF_TOKEN is valid",
        "org/a--b": "no such folder here, and no name that a repository can have; mend it",
    }
    paths = [(name, "v9") if name == "org/model" else name for name in told]
    answers = ask(hub.url, *paths, HF_TOKEN="hf_secret")
    for (result, message), (name, wanted) in zip(answers, told.items(), strict=True):
        assert result == "error" and message.startswith(f"{name}: {wanted}")
    assert "Bearer hf_secret" in hub.tokens, "the token is used"
    assert "hf_secret" not in str(answers) + ask.stderr, "and not shown"
    answer = ask(hub.url, "org/model", HF_TOKEN="hf_s\u00e9cret")
    assert answer == ["error", "org/model: HF_TOKEN holds characters that no token has; set it again"]
    assert "cret" not in ask.stderr


def test_no_network(ask):
    for environment, why in (
        ({}, "http://127.0.0.1:9 cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ):
        result, message = ask("http://127.0.0.1:9", ("org/model", "v2"), **environment)
        assert result == "error"
        assert message.startswith("org/model: no such folder here")
        assert why in message
        assert "run `hf download org/model --revision v2 --local-dir models/model` where" in message
        assert message.endswith("and name the folder models/model in place of org/model")


def test_a_dropped_connection_goes_on_where_it_was(hub, ask):
    hub.drops = {"model.safetensors": [15_000_000]}
    result, folder = ask(hub.url, "org/model")
    assert result == "ok"
    assert (pathlib.Path(folder) / "model.safetensors").read_bytes() == weights()
    ranges = [part for method, path, part in hub.requests if method == "GET" and path.endswith("/model.safetensors")]
    assert ranges[0] is None
    assert re.fullmatch(r"bytes=[1-9]\d*-", ranges[1])
    assert ask.stderr == f"Fetching org/model from {hub.url}\n"


def test_a_download_that_failed_keeps_whole_files(hub, ask):
    """The library drops the part of a file when a process ends, and keeps the files that are whole."""
    repository = hub.repositories["org/model"]
    second = weights(1)
    repository |= {"model-1.safetensors": repository.pop("model.safetensors"), "model-2.safetensors": second}
    owners = {"weight": "model-1.safetensors", "weight1": "model-2.safetensors"}
    repository |= {"model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": owners}).encode()}
    hub.drops = {"model-2.safetensors": [0] * 100}
    result, message = ask(hub.url, "org/model")
    assert result == "error"
    assert "start again later (whole files are kept)" in message
    result, message = ask(hub.url, "org/model", HF_HUB_OFFLINE="1")
    assert "nor (whole) in the cache" in message, "a part of a model is no model"
    hub.requests.clear()
    hub.drops = {}
    result, folder = ask(hub.url, "org/model")
    assert result == "ok"
    assert (pathlib.Path(folder) / "model-2.safetensors").read_bytes() == second
    fetched = {path.rsplit("/", 1)[-1] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
    assert "model-2.safetensors" in fetched
    assert "model-1.safetensors" not in fetched


def test_folders_and_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "org/name").mkdir(parents=True)
    (tmp_path / "org/file").write_text("")
    assert resolve("org/name") == resolve(tmp_path / "org" / "name") == resolve("~/org/name") == f"{tmp_path}/org/name"
    assert resolve("gs://bucket/model") == "gs://bucket/model"
    for path, revision, wrong in (
        ("org/file", None, "org/file: this is a file; name the folder that it is in"),
        ("./org/no", None, "./org/no: no such folder .nor an id on the Hugging Face hub, as ORG/NAME.; docs/models.md"),
        ("/a/b", None, "/a/b: no such folder"),
        ("a/b/c", None, "a/b/c: no such folder"),
        ("", None, "the path of the model is empty"),
        ("org/name", "main", "org/name: revision main is for ids on the Hugging Face hub"),
        ("gs://bucket/model", "main", "gs://bucket/model: revision main is for ids"),
    ):
        with pytest.raises(UserError, match=wrong):
            resolve(path, revision)


def test_an_id_may_name_its_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "kept@v1").mkdir(parents=True)
    assert split_revision("org/model@v1.2") == ("org/model", "v1.2")
    for path in ("org/model", "org/kept@v1", "gs://bucket/model@v1", "models@home", "org/model@", str(tmp_path)):
        assert split_revision(path) == (path, None)


def test_small_files(tmp_path):
    source = tmp_path / "model"
    others = {"model.safetensors": weights(), "model.safetensors.index.json": b"{}", "adapter_config.json": b"{}"}
    for name, content in (FILES | LEFT_OUT | others).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    copy_small_files(source, "memory://copies/model")
    copy_small_files("memory://copies/model", tmp_path / "copy")
    assert small_files(source) == small_files("memory://copies/model") == FILES
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == FILES
    with pytest.raises(UserError, match="no/such: no such folder"):
        small_files(tmp_path / "no/such")
