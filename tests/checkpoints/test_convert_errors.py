"""`msm_jax.convert` on damaged folders and with mistaken arguments: one line each, and nothing half written."""

import json
import os
import shutil
import sys
import types

import pytest

from msm_jax import convert
from tests.tiny_checkpoints import write_checkpoint


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: os.truncate(folder / "model.safetensors", 20_000), "model.safetensors"),
        (lambda folder: edit(folder / "config.json", intermediate_size=64), "and the model needs [64, 32]"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json:1: not JSON"),
        (lambda folder: (folder / "config.json").unlink(), "holds no model"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds a whole model and an adapter"),
        (lambda folder: (folder / "model.json").write_text("{}"), "model.json: not the description of a model"),
    ],
)
def test_damage_is_told_in_one_line(qwen3, tmp_path, capsys, change, message):
    folder = shutil.copytree(qwen3, tmp_path / "damaged")
    change(folder)
    assert convert.main(["import", f"--hf={folder}", f"--out={tmp_path / 'ours'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "ours" / "model.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "--hf={qwen3}", "--out={qwen3}"], "is not empty; choose another folder"),
        (["import", "--hf={imported}", "--out={new}"], "is a checkpoint of ours already"),
        (["import", "--out={new}"], "the following arguments are required: --hf"),
        (["export", "--checkpoint={imported}", "--out={new}", "--merge"], "is no adapter; there is nothing to merge"),
        (["export", "--checkpoint={new}", "--out={new}2"], "no such folder"),
        (["import", "--hf={qwen3}", "--out=gs://bucket/x"], "must be a local folder"),
        (["import", "--hf={qwen3}", "--out="], "must be a local folder"),
        (["shrink"], "invalid choice: 'shrink'"),
    ],
)
def test_mistakes(qwen3, imported, tmp_path, capsys, arguments, message):
    places = {"qwen3": qwen3, "imported": imported, "new": tmp_path / "new"}
    assert convert.main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def no_torch(monkeypatch, stage):
    monkeypatch.setitem(sys.modules, "torch", None)


def no_room(monkeypatch, stage):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))


def no_permission(monkeypatch, stage):
    monkeypatch.setattr(os, "access", lambda path, mode: False)


def no_origin(monkeypatch, stage):
    """Its base was pretrained here."""
    edit(stage / "base" / "model.json", origin=None)


def gone_origin(monkeypatch, stage):
    edit(stage / "base" / "model.json", origin="/gone/model")


VERIFY = ["--verify"]
IMPORT, EXPORT, MERGE = (
    ["import", "--hf={qwen3}"],
    ["export", "--checkpoint={stage}"],
    ["export", "--checkpoint={stage}", "--merge"],
)


@pytest.mark.parametrize(
    ("lack", "arguments", "message"),
    [
        *((no_torch, [*do, *VERIFY], "torch is missing: pip install -e '.[hf]'") for do in (IMPORT, EXPORT, MERGE)),
        *((no_room, do, " GB are to be written, and 1e-06 GB are free there") for do in (IMPORT, EXPORT, MERGE)),
        (no_permission, EXPORT, "cannot be written; choose another --out"),
        (no_origin, [*EXPORT, *VERIFY], "--verify needs the base in a local folder of Hugging Face; export it first"),
        (gone_origin, [*EXPORT, *VERIFY], "/gone/model: no such folder"),
    ],
)
def test_what_cannot_end_is_not_begun(
    qwen3, imported, adapter, tmp_path, capsys, monkeypatch, lack, arguments, message
):
    """The folder is left as it was, so that the next try does not meet a part of this one."""
    stage, out = tmp_path / "stage", tmp_path / "out"
    shutil.copytree(adapter, stage)
    shutil.copytree(imported, stage / "base")
    edit(stage / "model.json", base=str(stage / "base"), tokenizer=str(stage / "base"))
    out.mkdir()
    lack(monkeypatch, stage)
    arguments = [argument.format(qwen3=qwen3, stage=stage) for argument in arguments]
    assert convert.main([*arguments, f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert list(out.iterdir()) == []


def test_an_adapter_for_another_model(qwen3, adapter, tmp_path, capsys):
    assert convert.main(["export", f"--checkpoint={adapter}", f"--out={tmp_path / 'peft'}"]) == 0
    llama = write_checkpoint(tmp_path / "llama", "llama")
    capsys.readouterr()
    arguments = ["import", f"--hf={tmp_path / 'peft'}", f"--base={llama}", f"--out={tmp_path / 'ours'}"]
    assert convert.main(arguments) == 2
    error = capsys.readouterr().err
    assert (
        "the model needs" in error and "the adapter is of another model, or r in adapter_config.json is wrong" in error
    )
    assert convert.main(["export", f"--checkpoint={adapter}", f"--base={llama}", f"--out={tmp_path / 'ours'}"]) == 2
    assert "an adapter for another model: its head_size is 16, the base's is 8" in capsys.readouterr().err
