"""A workdir in a store, which decides what is done; `test_gcs` has the real libraries of one."""

import fsspec
import pytest

from msm_jax.errors import UserError
from msm_jax.stages import graph
from msm_jax.storage import files
from msm_jax.storage.mirror import Mirror, Place


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("MSM_JAX_CACHE", str(tmp_path / "cache"))
    yield "memory://bucket/run"
    monkeypatch.undo()
    fsspec.filesystem("memory").store.clear()


def stage(calls, name="corpus", kind=graph.Kind.CORPUS):
    def run(context):
        calls.append(name)
        (context.folder / "rows.txt").write_text(name)
        return {}

    return graph.Stage(kind, name, {}, {}, run)


def done(target, workdir):
    return [finished for _, finished, _ in graph.status([target], workdir)]


@pytest.mark.parametrize("failing", ["rows.txt", "manifest.json"])
def test_a_stage_is_done_when_the_store_has_it(url, tmp_path, monkeypatch, failing):
    calls = []
    target = stage(calls)
    _, workdir, mirror = Place.open(url)
    put = mirror._storage.put_file

    def fail(path, name):
        if name.endswith(failing):
            raise ConnectionError("503")
        put(path, name)

    with monkeypatch.context() as patch:
        patch.setattr(mirror._storage, "put_file", fail)
        with pytest.raises(UserError, match="memory://bucket/run: 503; the same command goes on"):
            graph.execute([target], workdir, mirror=mirror)
    assert done(target, workdir) == [False]

    _, workdir, mirror = Place.open(url)
    graph.execute([target], workdir, mirror=mirror)
    other = Mirror(url, tmp_path / "other")
    other.fetch()
    assert done(target, workdir) == done(target, other.local) == [True]
    assert (target.folder(other.local) / "rows.txt").read_text() == "corpus"
    assert calls == ["corpus"] * 2


def test_what_the_store_has_lost_is_not_done(url):
    calls = []
    one, two = stage(calls, "one"), stage(calls, "two")
    _, workdir, mirror = Place.open(url)
    graph.execute([one, two], workdir, mirror=mirror)
    mirror.fetch()
    assert done(one, workdir) == done(two, workdir) == [True]

    mirror._storage.rm(mirror.arrays(one.folder(workdir)), recursive=True)
    mirror.fetch()
    assert (done(one, workdir), done(two, workdir)) == ([False], [True])
    graph.execute([one, two], workdir, mirror=mirror)
    assert calls == ["one", "two", "one"]

    mirror._storage.rm(url, recursive=True)
    mirror.fetch()
    assert done(one, workdir) == done(two, workdir) == [False]


@pytest.mark.parametrize("workdir", ["gs:/bucket/run", "gs://", "gs:///run", "gs:///"])
def test_a_mistyped_url_is_no_folder(workdir):
    with pytest.raises(UserError, match=f"{workdir}: give a folder of a bucket, as gs://BUCKET/FOLDER"):
        Place.open(workdir)


def test_a_store_that_fails_is_not_an_empty_one(url, monkeypatch):
    target = stage([])
    _, workdir, mirror = Place.open(url)
    graph.execute([target], workdir, mirror=mirror)

    def fail(*_, **__):
        raise ConnectionError("503")

    for name in ("find", "info", "ls"):
        monkeypatch.setattr(mirror._storage, name, fail)
    with pytest.raises(UserError, match="503"):
        mirror.fetch()
    assert done(target, workdir) == [True]


def test_arrays_and_locks_stay_where_they_are(url, tmp_path):
    mirror = Mirror(url, tmp_path / "a")
    stage = mirror.local / "stages" / "s-1"
    for name in ("data.bin", "deep/er.txt", "final/array", "checkpoints/1/array", "manifest.json"):
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text(name)
    (mirror.local / ".locks").mkdir()
    (mirror.local / ".locks/run").write_text("")
    (stage / ".data.bin.7.part").write_text("half")
    mirror.send(mirror.local)
    other = Mirror(url, tmp_path / "b")
    other.fetch()
    found = {path.relative_to(other.local).as_posix() for path in other.local.rglob("*") if path.is_file()}
    assert found == {"stages/s-1/data.bin", "stages/s-1/deep/er.txt", "stages/s-1/manifest.json"}
    (other.local / "stages/s-1/data.bin").write_text("changed")
    other.fetch()  # of what is done here, nothing is brought again
    assert (other.local / "stages/s-1/data.bin").read_text() == "changed"


def test_what_is_finished_while_the_store_is_asked_stays(url, monkeypatch):
    target = stage([])
    _, workdir, mirror = Place.open(url)
    find = mirror._storage.find

    def slow_find(root):
        found = find(root)
        graph.execute([target], workdir, mirror=mirror)
        return found

    monkeypatch.setattr(mirror._storage, "find", slow_find)
    mirror.fetch()
    assert done(target, workdir) == [True]


def test_a_copy_in_which_a_run_works_is_left_alone(url, tmp_path):
    """As `--mode=show` beside a run: curves of the store are older, and the run has these files open."""
    _, workdir, mirror = Place.open(url)
    curves = mirror.local / "stages/train/metrics.jsonl"
    curves.parent.mkdir(parents=True)
    curves.write_text("1\n")
    mirror.send(curves)
    curves.write_text("1\n2\n")
    for locks in ((workdir, "other"), ("other", workdir)):
        with files.lock_run(*(str(tmp_path / "other") if name == "other" else name for name in locks)):
            assert Place.open(url).local == workdir and curves.read_text() == "1\n2\n"
    Place.open(url)
    assert curves.read_text() == "1\n"
