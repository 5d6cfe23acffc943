import dataclasses
import errno
import json
import pathlib
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from msm_jax.errors import UserError
from msm_jax.stages import graph
from msm_jax.stages.graph import Kind, Stage
from msm_jax.storage import files


class Calls(list):
    """Stages whose run notes its name here and leaves a file."""

    def stage(self, name, params=None, kind=Kind.CORPUS, version=1, **inputs):
        def run(context):
            self.append(name)
            (context.folder / "rows.txt").write_text(name)
            return {"rows": len(self)}

        return Stage(kind, name, params or {}, inputs, run, version)


@pytest.fixture
def calls():
    return Calls()


def failing(error, name="fails", **inputs):
    def run(context):
        raise error

    return Stage(Kind.TRAIN, name, {}, inputs, run)


def test_inputs_run_first_and_shared_stages_once(calls, tmp_path):
    corpus = calls.stage("corpus")
    arms = [calls.stage(f"train-{seed}", {"seed": seed}, docs=corpus) for seed in range(2)]
    again = calls.stage("corpus")
    report = calls.stage("report", first=arms[0], second=arms[1], corpus=again)

    manifests = graph.execute([arms[1], report], tmp_path)

    assert calls == ["corpus", "train-1", "train-0", "report"]
    assert set(manifests) == {stage.key for stage in (corpus, *arms, report)}
    assert again.key == corpus.key


def test_what_is_done_is_not_done_again(calls, tmp_path):
    target = calls.stage("train", docs=calls.stage("corpus"))
    first = graph.execute([target], tmp_path)
    second = graph.execute([calls.stage("train", docs=calls.stage("corpus"))], tmp_path)
    assert calls == ["corpus", "train"]
    assert second == first


def test_manifest(calls, tmp_path):
    corpus = calls.stage("corpus", {"documents": 3})
    train = calls.stage("train", {"steps": 2}, kind=Kind.TRAIN, docs=corpus)
    graph.execute([train], tmp_path)
    manifest = json.loads((train.folder(tmp_path) / "manifest.json").read_text())
    assert train.folder(tmp_path) == tmp_path / "stages" / f"train-{train.hash}"
    assert manifest.pop("seconds") >= 0
    assert set(manifest.pop("versions")) == {"python", "jax", "msm_jax"}
    assert manifest.pop("created").endswith("+00:00")
    assert manifest == {
        "key": train.key,
        "kind": "train",
        "name": "train",
        "params": {"steps": 2},
        "inputs": {"docs": corpus.key},
        "about": {},
        "summary": {"rows": 2},
    }


def test_context(calls, tmp_path):
    corpus = calls.stage("corpus")

    def run(context):
        assert context.inputs["docs"].joinpath("rows.txt").read_text() == "corpus"
        assert context.params == {"steps": 2}
        assert context.stage is train
        return {}

    train = Stage(Kind.TRAIN, "train", {"steps": 2}, {"docs": corpus}, run)
    graph.execute([train], tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        lambda calls: calls.stage("train", {"steps": 3}, docs=calls.stage("corpus")),
        lambda calls: calls.stage("train", {"steps": 2}, kind=Kind.SCORE, docs=calls.stage("corpus")),
        lambda calls: calls.stage("train", {"steps": 2}, version=2, docs=calls.stage("corpus")),
        lambda calls: calls.stage("train", {"steps": 2}, chats=calls.stage("corpus")),
        lambda calls: calls.stage("train", {"steps": 2}, docs=calls.stage("corpus", {"seed": 1})),
        lambda calls: calls.stage("train", {"steps": 2}, docs=calls.stage("corpus"), more=calls.stage("corpus")),
    ],
)
def test_the_hash_covers_all_that_determines_the_output(calls, changed):
    assert changed(calls).hash != calls.stage("train", {"steps": 2}, docs=calls.stage("corpus")).hash


@hypothesis.given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())))
@hypothesis.settings(max_examples=30)
def test_the_hash_knows_no_order_of_fields(params):
    def hashed(items):
        return Calls().stage("a", dict(items)).hash

    assert hashed(params.items()) == hashed(reversed(params.items()))


def test_interrupted_stage_finds_its_folder_again(calls, tmp_path):
    def run(context):
        checkpoint = context.folder / "step"
        if not checkpoint.exists():
            checkpoint.write_text("7")
            raise KeyboardInterrupt
        return {"resumed_at": int(checkpoint.read_text())}

    train = Stage(Kind.TRAIN, "train", {}, {"docs": calls.stage("corpus")}, run)
    with pytest.raises(KeyboardInterrupt):
        graph.execute([train], tmp_path)
    assert [done for _, done, _ in graph.status([train], tmp_path)] == [True, False]
    assert graph.execute([train], tmp_path)[train.key]["summary"] == {"resumed_at": 7}
    assert calls == ["corpus"]


def test_a_manifest_of_another_stage_does_not_count(calls, tmp_path):
    one, two = calls.stage("a", {"seed": 1}), calls.stage("a", {"seed": 2})
    graph.execute([one], tmp_path)
    one.folder(tmp_path).rename(two.folder(tmp_path))
    graph.execute([two], tmp_path)
    assert calls == ["a", "a"]


def test_status(calls, tmp_path):
    corpus = calls.stage("corpus")
    train = calls.stage("train", docs=corpus)
    assert graph.status([train], tmp_path) == [(corpus, False, None), (train, False, None)]
    assert not any(tmp_path.iterdir())
    graph.execute([corpus], tmp_path)
    (_, done, seconds), (_, todo, _) = graph.status([train], tmp_path)
    assert (done, todo) == (True, False)
    assert seconds >= 0


def test_lines(calls, tmp_path):
    corpus = calls.stage("corpus")
    lines = []
    graph.execute([corpus], tmp_path, lines.append)
    graph.execute([calls.stage("train", docs=corpus)], tmp_path, lines.append)
    assert lines == [
        "[1/1] corpus ...",
        "1 of 2 stages are done already",
        "[2/2] train ... 0:00:00 elapsed, about 0:00:00 left",
    ]


def test_time_left_is_by_the_pace_of_each_kind(calls):
    stages = [calls.stage(f"{kind}-{n}", {"n": n}, kind) for kind in ("corpus", "score") for n in range(2)]
    stages += [calls.stage(f"train-{steps}", {"steps": steps, "batch_size": 2}, "train") for steps in (100, 5)]
    seconds = {"corpus-0": 10, "corpus-1": 20, "train-100": 4000}
    manifests = {
        stage.key: {"kind": stage.kind, "seconds": seconds[stage.name], "params": stage.params}
        for stage in stages
        if stage.name in seconds
    }
    # 5 steps at 40 s each, and two stages of a kind not seen yet, taken as the median of all.
    assert graph._progress(graph.time.monotonic(), stages, manifests) == " 0:00:00 elapsed, about 0:04:00 left"


def wrapped():
    error = RuntimeError("write failed")
    error.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    return error


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("x: No space left on device"), wrapped()]
)
def test_full_disk(calls, tmp_path, error):
    stage = failing(error, docs=calls.stage("corpus"))
    with pytest.raises(UserError, match="no space left on device while writing .*finished stages are kept") as caught:
        graph.execute([stage], tmp_path)
    assert str(stage.folder(tmp_path)) in str(caught.value)
    assert [done for _, done, _ in graph.status([stage], tmp_path)] == [True, False]


def test_other_errors_pass(tmp_path):
    with pytest.raises(PermissionError):
        graph.execute([failing(PermissionError(errno.EACCES, "no"))], tmp_path)


def test_cycle(calls):
    inputs = {}
    one = Stage(Kind.CORPUS, "one", {}, inputs, calls.append)
    inputs["two"] = calls.stage("two", one=one)
    with pytest.raises(ValueError, match="cycle of stages: one -> two -> one"):
        graph.status([one], "nowhere")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "..", "-a"])
def test_names_must_name_folders(calls, name):
    with pytest.raises(ValueError, match="cannot name a folder"):
        calls.stage(name)


@pytest.fixture
def other(tmp_path):
    """Another process that makes the stage "slow" until its input ends."""
    program = (
        "import sys; from msm_jax.stages import graph\n"
        "def run(context):\n  print('inside', flush=True); sys.stdin.read(); return {'by': 'the other'}\n"
        "slow = graph.Stage(graph.Kind.CORPUS, 'slow', {}, {}, run)\n"
        f"graph.execute([slow], {str(tmp_path)!r}, report=lambda line: None)\n"
    )
    root = pathlib.Path(graph.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "inside\n"
        yield process


@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_make_a_shared_stage_once(calls, tmp_path, other, killed):
    """What the one makes the other waits for, and makes it if the one is killed."""
    slow = calls.stage("slow")

    def told(line):
        if "waiting" in line:
            assert line == "[1/2] slow: another process makes it; waiting for its end"
            other.kill() if killed else other.stdin.close()

    manifests = graph.execute([calls.stage("mine", slow=slow)], tmp_path, report=told)
    assert calls == (["slow", "mine"] if killed else ["mine"])
    assert (manifests[slow.key]["summary"] == {"by": "the other"}) is not killed


def test_one_run_in_a_workdir(tmp_path):
    store = tmp_path / "store"
    with files.lock_run(tmp_path / "a", store), files.lock_run(tmp_path / "b", store):
        with pytest.raises(UserError, match="a: in use by another process; wait for it, or choose another --workdir"):
            with files.lock_run(tmp_path / "a", tmp_path / "a"):
                pass
        assert all(map(files.in_use, (tmp_path / "a", tmp_path / "b", store)))
    assert not any(map(files.in_use, (tmp_path / "a", store, tmp_path / "nowhere")))


def test_the_first_of_several_hosts_decides_what_is_done(calls, tmp_path):
    stage = calls.stage("corpus")
    meetings = []
    follower = graph.Hosts(1, 2, meetings.append, of_first=lambda value: 1.0)
    with pytest.raises(UserError, match="not seen from this host"):
        graph.execute([stage], tmp_path, hosts=follower)
    graph.execute([stage], tmp_path)
    # It is done here, and was not where the first host looked: all take part, and the first host does it.
    assert graph.execute([stage], tmp_path, hosts=dataclasses.replace(follower, of_first=lambda value: 0.0))
    assert meetings == [f"{stage.key} is free", f"{stage.key} is over"] and calls == ["corpus"]
