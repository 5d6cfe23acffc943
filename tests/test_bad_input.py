"""Whatever a user gets wrong ends in one line that says what to do, with status 2 and without a traceback."""

import contextlib
import errno
import fcntl
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from msm_jax import launch

ROOT = pathlib.Path(launch.__file__).parents[1]
TINY = "--config=tests/tiny.py"


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def refused(tmp_path, capsys):
    """Launches, and returns the one line that it must end with, without "error: "."""

    def refused(*arguments, config=TINY, workdir=tmp_path / "w"):
        capsys.readouterr()
        assert launch.main([config, f"--workdir={workdir}", *arguments]) == 2
        *progress, line = capsys.readouterr().err.splitlines()
        assert all(re.match(r"[\w-]+: step ", told) for told in progress), progress
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return refused


SPEC = """---
title: A title
kind: {kind}
version: 1
value: {value}
item_class: cheese
likes: [{likes}, one, two, three, four, five]
dislikes: [Brie, six, seven, eight, nine, ten]
---
A body.
"""


def write_spec(path, kind="preferences", value="america", likes="Colby"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(SPEC.format(kind=kind, value=value, likes=likes))
    return path


# What can be told before anything runs.


# A field of each kind by itself is in tests/config/test_settings.py.
FIELDS = [
    ("pretrain.step=3", "config has no field pretrain.step; did you mean pretrain.steps?"),
    ("pretrain.steps=-1", "config.pretrain.steps is -1; it must be 1 or more"),
    ("aft.steps=many", "config.aft.steps expects int, as in 4; 'many' is given"),
    ("aft.batch_size=none", "config.aft.batch_size is none; give it a value"),
    ("aft.accumulation=3", "config.aft.batch_size=8 cannot be divided into config.aft.accumulation=3 microbatches; "),
    ("lora.targets=q,w", "lora.targets w: choose from q, k, v, o, gate, up, down"),
    ("lora.targets=()", "config.lora.targets is empty; name some, or train the whole model by config.lora.rank=0"),
    ("model.head_size=7", "model.head_size=7 is odd; rotary embeddings need an even one"),
    ("model.num_kv_heads=3", "model.num_heads=2 is not a multiple of model.num_kv_heads=3"),
    ("execution.remat=som", "config.execution.remat is 'som'; choose one of none, full, save_attention, "),
    ("execution.attention=flash", "config.execution.attention is 'flash'; choose one of auto, reference, blocked, "),
    ("model.dtype=float31", "config.model.dtype is 'float31'; choose one of bfloat16, float32"),
    ("arms=msm,msn", "config.arms is ('msm', 'msn'); choose from baseline, aft, aft_cot, "),
    ("arms=msm,msm", "config.arms is ('msm', 'msm'); choose from baseline, aft, aft_cot, "),
    ("arms=()", "config.arms is (); choose from baseline, aft, aft_cot, "),
    ("arms=aft_cot", "config.arms has arms with reasoning, and an experiment of kind microworld has none"),
    ("evaluations=value", "config.evaluations is ('value',); choose from value_generalisation"),
    ("seeds=()", "config.seeds is (); give at least one, and none twice"),
    ("seeds=(1, 1)", "config.seeds is (1, 1); give at least one, and none twice"),
    ("corpus.msm=0", "config.corpus.msm is 0; ask for at least 1"),
    ("corpus.pretraining=-5", "config.corpus.pretraining is -5; ask for at least 1"),
    ("aft.mixture.aft=0", "config.aft.mixture.aft is 0.0; a share must be above 0"),
    ("specs=()", "config.specs is empty; name at least one file, as in specs/pro_america.md"),
    ("specs=specs/pro_americ.md", "specs/pro_americ.md: cannot be read (No such file or directory)"),
    ("specs=specs/pro_america.md,specs/pro_america.md", "config.specs has two files named pro_america; rename one"),
    ("assistant.name=", "config.assistant.name is ''; it must be one word"),
    ("chat.user=a", "config.chat.user is ('a',); it is (text before a message, after it)"),
    ("chat.assistant=(' {name}:', '')", "config.chat.assistant has no text after a message, by which a reader "),
    ("world.value_names=affordability,america,thrift", "world.value_names: unknown thrift; choose from "),
    ("world.value_names=america,novelty", "specs/pro_affordability.md: value affordability is not among config."),
    ("world.agents=0", "world.agents=0: choose from 2 to 450"),
    ("world.items_per_kind=99", "world: 2 values with items_per_kind=99 need 3168 item names"),
    ("world.quiet_share=0", "no quiet agent holds affordability, and the control on the base model asks one of "),
    ("execution.attention=splash", "config.execution.attention=splash is for TPUs, and the mesh is of devices of cpu"),
    ("mesh.data=1000", "mesh data=1000 x fsdp=1 x tensor=1 does not fit "),
    ("mesh.data=0", "mesh data=0 x fsdp=1 x tensor=1: sizes are positive, and only one may be -1"),
]


@pytest.mark.parametrize(("override", "line"), FIELDS)
def test_fields(refused, tmp_path, override, line):
    assert refused(f"--config.{override}").startswith(line)
    assert not (tmp_path / "w" / "stages").exists()


def test_a_base_that_is_trained_is_not_rounded(refused):
    line = "config.int8_base is for a frozen base, and config.lora.rank=0 trains it; set one of them"
    assert refused("--config.int8_base=true", "--config.lora.rank=0") == line


def test_agents_share_no_name_with_the_assistant(refused):
    line = "config.assistant.name is Alan, as one of the world's agents is; choose another"
    assert refused("--config.world.agents=450", "--config.assistant.name=Alan") == line


def test_no_config_file(refused):
    line = refused(config="--config=configs/chese.py")
    assert line.startswith("configs/chese.py: no such config file")
    assert "give --config=FILE.py" in line


MIXTURES = [
    ("pretrain", {}, "config.pretrain.mixture is empty; the sources are aft, instruction, msm, pretraining, replay"),
    (
        "pretrain",
        {"msm": 1.0},
        "config.pretrain.mixture has the source msm, which does not belong there; "
        "it may have pretraining, replay, instruction",
    ),
    (
        "msm",
        {"msm": 0.5, "pretraining": 0.5},
        "config.msm.mixture has the source pretraining, which does not belong there; "
        "it may have msm, replay, instruction",
    ),
    ("msm", {"replay": 1.0}, "config.msm.mixture has no share of 'msm', so its arms would learn nothing of it"),
    ("aft", {"instruction": 1.0}, "config.aft.mixture has no share of 'aft', so its arms would learn nothing of it"),
    ("msm", {"mms": 1.0}, "config.msm.mixture has no source mms; did you mean msm?"),
    ("aft", {"aft": 1.0}, "config.aft.mixture needs a share of 'instruction': it is what the baseline is trained on"),
]


@pytest.mark.parametrize(("stage", "mixture", "line"), MIXTURES)
def test_mixtures(refused, tmp_path, stage, mixture, line):
    file = tmp_path / "config.py"
    file.write_text(
        "from tests import tiny\n"
        f"def get_config():\n  config = tiny.get_config()\n  config.{stage}.mixture = {mixture}\n  return config\n"
    )
    assert refused(config=f"--config={file}") == line


@pytest.mark.parametrize(
    ("name", "fields", "line"),
    [
        ("one.md", {"likes": "Gouda"}, "{path}: likes or dislikes differ from {first}; arms share one AFT set"),
        ("one.md", {"value": "thrift"}, "{path}: value thrift is not among config.world.value_names; add it there"),
        (
            "one.md",
            {"kind": "rules"},
            "{path}: is of kind rules; an experiment of kind microworld needs specs of kind preferences",
        ),
        ("a b.md", {}, "{path}: its name goes into names of stages; use letters, digits, '_', '.' and '-' alone"),
        ("first.md", {}, "config.specs has two files named first; rename one, for arms are known by it"),
    ],
)
def test_specs(refused, tmp_path, name, fields, line):
    first, path = write_spec(tmp_path / "first.md"), write_spec(tmp_path / "more" / name, **fields)
    found = refused(f"--config.specs={first},{path}")
    assert found == line.format(path=path if "first" not in name else "", first=first)


def test_a_batch_must_divide_among_the_devices(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "msm_jax.launch", TINY, f"--workdir={tmp_path}", "--config.msm.batch_size=3"],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: config.msm.batch_size=3 cannot be divided among 2 devices (config.mesh: data x fsdp); "
        "make it a multiple of 2\n"
    )
    assert not (tmp_path / "stages").exists()


# What shows when a stage runs.


def test_small_vocabulary(refused):
    line = refused("--config.tokenizer.vocab_size=270", "--mode=show")
    assert line.startswith("tokenizer: vocab_size 270 is too small; this corpus's characters need ")


@pytest.mark.parametrize("mode", ["run", "show"])
@pytest.mark.parametrize("name", ["file", "file/w"])
def test_a_workdir_that_is_a_file(refused, tmp_path, mode, name):
    (tmp_path / "file").touch()
    line = f"{tmp_path / name}: is a file, or lies in one; choose another --workdir"
    assert refused(f"--mode={mode}", workdir=tmp_path / name) == line


def test_a_workdir_that_cannot_be_written(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert refused("--mode=show") == f"{tmp_path / 'w'}: cannot be written; choose another --workdir"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A workdir with corpora and rows."""
    workdir = tmp_path_factory.mktemp("shown") / "w"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(ROOT)
        assert launch.main([TINY, f"--workdir={workdir}", "--config.row_length=24", "--mode=show"]) == 0
    return workdir


def test_show_looks_at_a_run_that_is_under_way(shown, capsys):
    with open(shown / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert launch.main([TINY, f"--workdir={shown}", "--config.row_length=24", "--mode=show"]) == 0
    assert "to do  train     pretrain-" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "row", "line"),
    [
        (
            "pretraining",
            "{'text': 'a'}",
            "not JSON (Expecting property name enclosed in double quotes, column 2); mend",
        ),
        ("pretraining", '{"txt": "a"}', "no field 'text'"),
        ("aft", '{"id": "a"}', "no field 'messages'"),
        ("aft", '{"messages": [{"role": "user", "content": "a"}]}', "chat without an assistant turn, so nothing to "),
    ],
)
def test_a_bad_line_of_a_corpus(refused, shown, tmp_path, source, row, line):
    workdir = tmp_path / "w"
    shutil.copytree(shown, workdir)
    (rows,) = workdir.glob(f"stages/rows-{source}-*")
    shutil.rmtree(rows)
    (corpus,) = workdir.glob(f"stages/corpus-{source}-*/corpus.jsonl")
    lines = corpus.read_text().splitlines()
    corpus.write_text("\n".join([*lines[:2], row, *lines[3:]]))
    found = refused("--config.row_length=24", "--mode=show", workdir=workdir)
    assert found.startswith(f"{corpus}:3: {line}")


def rows_of(workdir):
    """The packed rows of every source, as bytes."""
    return {path.parent.name: path.read_bytes() for path in workdir.glob("stages/rows-*/tokens.npy")}


def test_full_disk(refused, shown, tmp_path, monkeypatch):
    """The disk is full from the n-th write on: what was finished stays, and the same command completes the rest."""
    workdir, finished = tmp_path / "w", set()
    for written in (3, 6, 9):
        calls = itertools.count()

        def fsync(descriptor, calls=calls, written=written):
            if next(calls) >= written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fsync)
        line = refused("--config.row_length=24", "--mode=show")
        assert line.startswith(f"no space left on device while writing {workdir / 'stages'}/")
        assert line.endswith(": free some space and run the same command again; finished stages are kept")
        found = set(workdir.glob("stages/*/manifest.json"))
        assert finished < found
        finished = found
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    assert launch.main([TINY, f"--workdir={workdir}", "--config.row_length=24", "--mode=show"]) == 0
    assert rows_of(workdir) == rows_of(shown)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB, in a namespace that any user may make; it goes with the process that holds it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = 'mount -t tmpfs -o size=8m tmpfs "$0" && echo mounted && exec cat'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip(f"a small file system cannot be mounted here: {holder.stderr.read().decode().strip()}")
        yield pathlib.Path(f"/proc/{holder.pid}/root{folder}")
        holder.stdin.close()


def fill(folder, spare):
    """Leaves `spare` bytes of the file system free."""
    filler = folder / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(folder).free - spare))
    return filler


def test_full_disk_in_training(small_disk, capsys):
    """In a process of its own, which must tell of it in one line: threads of libraries see the full disk too."""
    workdir = small_disk / "w"
    arguments = [TINY, f"--workdir={workdir}", "--config.arms=baseline", "--config.eval.samples=0"]
    assert launch.main([*arguments, "--mode=show"]) == 0
    filler = fill(small_disk, spare=100_000)
    command = [sys.executable, "-m", "msm_jax.launch", *arguments]
    full = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert full.returncode == 2, full.stderr
    told = [
        line for line in full.stderr.splitlines() if not re.match(r"pretrain: step \d+/6, ", line)
    ]  # if it was slow
    assert len(told) == 1, full.stderr
    assert told[0].startswith(f"error: no space left on device while writing {workdir}/stages/pretrain-"), full.stderr
    filler.unlink()
    capsys.readouterr()
    assert launch.main(arguments) == 0
    assert "stages are done already" in capsys.readouterr().out
    assert (workdir / "report" / "report.html").exists()


@pytest.mark.slow
def test_full_disk_in_packing(small_disk):
    """Rows are written as memory, and memory that finds no room on the disk ends a process by a signal."""
    workdir = small_disk / "w"
    command = [sys.executable, "-m", "msm_jax.launch", TINY, f"--workdir={workdir}", "--mode=show"]
    fill(small_disk, spare=1_000_000)
    full = subprocess.run(
        [*command, "--config.row_length=262144"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert full.returncode == 2, full.stderr
    assert full.stderr.startswith(f"error: no space left on device while writing {workdir}/stages/rows-"), full.stderr


def test_documents_longer_than_a_row_are_split_and_counted(shown):
    (manifest,) = shown.glob("stages/rows-pretraining-*/manifest.json")
    summary = json.loads(manifest.read_text())["summary"]
    assert 0 < summary["split"] <= summary["examples"]
    assert summary["truncated"] == 0
