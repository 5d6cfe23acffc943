"""`msm_jax.convert` on damaged folders and with mistaken arguments: one line each, and nothing half written."""

import json
import os
import shutil
import sys
import types

import pytest
import transformers

from msm_jax import convert
from tests.tiny_checkpoints import write_checkpoint


def both(folder):
    (folder / "adapter_config.json").write_text("{}")


def two_ropes(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": {"rope_theta": 5e5}}))


def not_an_object(folder):
    (folder / "config.json").write_text("[]")


def a_word_for_a_number(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "32"}))


def half_a_description(folder):
    (folder / "model.json").write_text("{}")


def damaged(folder, tmp_path, change):
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def cut(folder):
    os.truncate(folder / "model.safetensors", 20_000)


def scramble(folder):
    with open(folder / "model.safetensors", "r+b") as file:
        file.write(b"\xff" * 64)


def lose_shard(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    sorted(folder.glob("model-*-of-*.safetensors"))[1].unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def rename_field(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))


def not_json(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "model.safetensors"),
        (scramble, "model.safetensors"),
        (lose_shard, "no such file, but model.safetensors.index.json names it"),
        (pickled, "pickled weights"),
        (rename_field, "mlp.gate_proj.weight has shape [48, 32], and the model needs [64, 32]"),
        (not_json, "config.json:1: not JSON"),
        (lambda folder: (folder / "config.json").unlink(), "holds no model"),
        (both, "holds a whole model and an adapter"),
        (two_ropes, "rope_theta is 10000.0 and rope_scaling.rope_theta is 500000.0; make them the same"),
        (not_an_object, "config.json: not a JSON object"),
        (a_word_for_a_number, "hidden_size is '32'; it must be a whole number"),
        (half_a_description, "model.json: not the description of a model"),
    ],
)
def test_damage_is_told_in_one_line(qwen3, tmp_path, capsys, change, message):
    folder = damaged(qwen3, tmp_path, change)
    capsys.readouterr()
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


def described(stage, **fields):
    path = stage / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def no_origin(monkeypatch, stage):
    """Its base was pretrained here."""
    described(stage / "base", origin=None)


def gone_origin(monkeypatch, stage):
    described(stage / "base", origin="/gone/model")


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
        (no_permission, EXPORT, "cannot be written; choose another folder"),
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
    described(stage, base=str(stage / "base"), tokenizer=str(stage / "base"))
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
