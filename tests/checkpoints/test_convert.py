"""Folders of Hugging Face in, ours out, and back: through the command, as a user has it."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import msm_jax
from msm_jax import convert
from msm_jax.checkpoints import conversion, weights
from msm_jax.checkpoints.orbax import save_params
from msm_jax.data.tokenizer import train_sentencepiece
from msm_jax.errors import UserError
from msm_jax.models import DecoderConfig, Model
from msm_jax.parallel import make_mesh
from tests.data.checkpoints import read_ids
from tests.tiny_checkpoints import write_adapter, write_checkpoint

TOKENS = np.random.default_rng(0).integers(0, 384, (2, 30)).astype(np.int32)


def their_logits(folder, adapter=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_there_and_back(qwen3, tmp_path, capsys):
    """bf16 stays bf16, bit for bit, and every file beside the weights is kept; what ends an answer is entered."""
    ours, back = tmp_path / "ours", tmp_path / "hf"
    assert convert.main(["import", f"--hf={qwen3}", f"--out={ours}", "--verify"]) == 0
    difference, kl = capsys.readouterr().out.splitlines()[1].split("logits ")[1].split(", max KL ")
    assert float(difference) < 1e-4 and float(kl.split()[0]) < 1e-6
    assert convert.main(["export", f"--checkpoint={ours}", f"--out={back}", "--verify"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "a model of" in lines[0] and "max KL" in lines[1]
    for path in qwen3.iterdir():
        if path.name not in ("model.safetensors", "generation_config.json"):
            assert (back / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(path.name for path in back.iterdir()) == sorted(path.name for path in qwen3.iterdir())
    before, after = (json.loads((folder / "generation_config.json").read_text()) for folder in (qwen3, back))
    assert after == before | {"eos_token_id": read_ids(qwen3, "<|endoftext|>", "<|im_end|>")}
    before, after = (
        {name: (x.dtype, x.tobytes()) for name, x in load_file(folder / "model.safetensors").items()}
        for folder in (qwen3, back)
    )
    assert before == after
    ids = transformers.AutoTokenizer.from_pretrained(back)("Which chair?")["input_ids"]
    assert ids == msm_jax.load(ours).tokenizer.encode("Which chair?")


def test_verify_finds_another_model(qwen3, tmp_path, capsys, monkeypatch):
    save = conversion.save_params
    monkeypatch.setattr(conversion, "save_params", lambda folder, tree: save(folder, jax.tree.map(jnp.negative, tree)))
    assert convert.main(["import", f"--hf={qwen3}", f"--out={tmp_path / 'ours'}", "--verify"]) == 2
    assert "the two differ by more than" in capsys.readouterr().err


def test_verify_looks_at_the_adapter_that_was_exported(adapter, tmp_path, capsys, monkeypatch):
    """Written with a quarter of its scale, it is found out."""
    right = conversion.peft_config
    monkeypatch.setattr(conversion, "peft_config", lambda lora, *more: right(lora, *more) | {"lora_alpha": 2})
    assert convert.main(["export", f"--checkpoint={adapter}", f"--out={tmp_path / 'peft'}", "--verify"]) == 2
    assert "the two differ by more than" in capsys.readouterr().err


def test_a_link_to_a_stage_is_the_stage(adapter, imported, tmp_path):
    stage = shutil.copytree(adapter, tmp_path / "stages" / "adapter")
    shutil.copytree(imported, tmp_path / "stages" / "base")
    edit(stage / "model.json", base="../base", tokenizer="../base")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "best").symlink_to(stage)
    np.testing.assert_array_equal(
        msm_jax.load(tmp_path / "elsewhere" / "best").logits(TOKENS), msm_jax.load(adapter).logits(TOKENS)
    )


def test_a_base_that_is_gone(qwen3, adapter, tmp_path, capsys):
    assert convert.main(["export", f"--checkpoint={adapter}", f"--out={tmp_path / 'peft'}"]) == 0
    edit(tmp_path / "peft" / "adapter_config.json", base_model_name_or_path="/gone/base")
    with pytest.raises(UserError, match="/gone/base: no such folder.*adapter_config.json names it as the base"):
        msm_jax.load(tmp_path / "peft")
    msm_jax.load(qwen3, adapter=tmp_path / "peft")


def test_what_failed_leaves_nothing(qwen3, tmp_path, capsys, monkeypatch):
    def interrupted(folder, params):
        (folder / "half").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "save_params", interrupted)
    assert convert.main(["import", f"--hf={qwen3}", f"--out={tmp_path / 'ours'}"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command starts again\n"
    assert not (tmp_path / "ours").exists()


def test_a_fine_tuned_model_says_its_dtype(imported, tmp_path):
    """All weights trained, in float32, on a base whose config.json says bfloat16."""
    stored = weights.open_model(imported)
    mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    folder = tmp_path / "stage"
    folder.mkdir()
    save_params(folder / "final", weights.load(stored, mesh, "float32"))
    weights.write_description(folder, stored.model, tokenizer=str(imported))
    assert convert.main(["export", f"--checkpoint={folder}", f"--out={tmp_path / 'hf'}"]) == 0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "float32"


def test_an_adapter_goes_to_peft(qwen3, imported, adapter, tmp_path, capsys):
    out = tmp_path / "peft"
    assert convert.main(["export", f"--checkpoint={adapter}", f"--out={out}", "--verify"]) == 0
    assert "an adapter of rank 4, alpha 8, on q, v, gate, down" in capsys.readouterr().out
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(qwen3)
    ours = msm_jax.load(adapter).logits(TOKENS)
    np.testing.assert_allclose(ours, their_logits(qwen3, out), atol=1e-4)
    # And back.
    again = tmp_path / "again"
    assert convert.main(["import", f"--hf={out}", f"--out={again}", "--verify"]) == 0
    np.testing.assert_array_equal(msm_jax.load(again).logits(TOKENS), ours)
    np.testing.assert_array_equal(msm_jax.load(qwen3, adapter=out).logits(TOKENS), ours)
    np.testing.assert_array_equal(msm_jax.load(imported, adapter=again).logits(TOKENS), ours)


@pytest.mark.parametrize("scale", [0.02, 0.6])
def test_a_merged_model_differs_by_rounding_alone(qwen3, imported, tmp_path, capsys, scale):
    """Whether the adapter does much or little."""
    stage, out = write_adapter(tmp_path / "stage", imported, scale=scale), tmp_path / "merged"
    assert convert.main(["export", f"--checkpoint={stage}", f"--out={out}", "--merge", "--verify"]) == 0
    assert 0.5 < float(capsys.readouterr().out.split("max error of a weight ")[1].split()[0]) <= 1
    assert {array.dtype.name for array in load_file(out / "model.safetensors").values()} == {"bfloat16"}
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template
    if scale > 0.1:
        ours = msm_jax.load(stage).logits(TOKENS)
        assert np.abs(their_logits(out) - ours).max() < 0.05 * np.abs(their_logits(qwen3) - ours).max()


def test_a_base_is_read_at_the_commit_that_an_adapter_names(qwen3, imported, adapter, tmp_path, monkeypatch, caplog):
    commits = {None: tmp_path / "newest", "v1": tmp_path / "c0ffee", "c0ffee": tmp_path / "c0ffee"}
    shutil.copytree(qwen3, commits["v1"])
    write_checkpoint(commits[None], "qwen3", seed=1)
    resolve = weights.resolve

    def from_hub(path, revision=None, **more):
        return str(commits[revision]) if path == "org/base" else resolve(path, revision, **more)

    monkeypatch.setattr(weights, "resolve", from_hub)
    peft_folder, ours, again = tmp_path / "peft", tmp_path / "ours", tmp_path / "again"
    assert convert.main(["export", f"--checkpoint={adapter}", f"--out={peft_folder}"]) == 0
    edit(peft_folder / "adapter_config.json", base_model_name_or_path="org/base", revision="v1")
    wanted = msm_jax.load(adapter).logits(TOKENS)
    np.testing.assert_array_equal(msm_jax.load(peft_folder).logits(TOKENS), wanted)
    assert not caplog.messages
    no_text = shutil.copytree(peft_folder, tmp_path / "no_text")
    edit(no_text / "adapter_config.json", revision=False)
    with pytest.raises(UserError, match="adapter_config.json: revision is False; it must be a name or a commit"):
        msm_jax.load(no_text)
    # On the way through a folder of ours it stays an id, and the commit that the revision stood for.
    assert convert.main(["import", f"--hf={peft_folder}", f"--out={ours}"]) == 0
    np.testing.assert_array_equal(msm_jax.load(ours).logits(TOKENS), wanted)
    assert convert.main(["export", f"--checkpoint={ours}", f"--out={again}"]) == 0
    described = json.loads((again / "adapter_config.json").read_text())
    assert (described["base_model_name_or_path"], described["revision"]) == ("org/base", "c0ffee")
    # Also where it is written beside what a path of that name would be.
    monkeypatch.chdir(tmp_path)
    assert convert.main(["import", f"--hf={peft_folder}", "--out=org/ours"]) == 0
    np.testing.assert_array_equal(msm_jax.load("org/ours").logits(TOKENS), wanted)
    # A folder that is named stays that folder.
    there = tmp_path / "there"
    caplog.clear()
    assert convert.main(["import", f"--hf={peft_folder}", f"--out={there}", f"--base={qwen3}"]) == 0
    assert json.loads((there / "model.json").read_text())["base"] == str(qwen3)
    caplog.clear()
    msm_jax.load(imported, adapter=peft_folder)
    assert caplog.messages == [f"{peft_folder}: was trained on org/base, and is opened over {qwen3}"]


def test_thinking_is_as_in_training_unless_asked_for(imported, tmp_path):
    stage = write_adapter(tmp_path / "stage", imported)
    edit(stage / "model.json", chat={"template": "", "thinking": "tag", "name": "Q"})
    for asked, wanted in ((None, "tag"), ("default", "default"), ("on", "on")):
        model = msm_jax.load(stage, thinking=asked)
        assert (model.template.thinking, model.name) == (wanted, "Q")
    assert msm_jax.load(imported, thinking="off").template.thinking == "off"
    with pytest.raises(UserError, match="thinking is 'maybe'; use one of default"):
        msm_jax.load(stage, thinking="maybe")
    # A template that lies beside an adapter, in either of the two places, is the one that it was trained with.
    assert convert.main(["export", f"--checkpoint={stage}", f"--out={tmp_path / 'peft'}"]) == 0
    template = msm_jax.load(imported).template.source.replace("<|im_start|>", "<|im_start|>the ")
    (tmp_path / "peft" / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert msm_jax.load(tmp_path / "peft").template.source == template


def test_a_wrong_merge_is_found(imported, tmp_path, monkeypatch):
    def nine_tenths(params, adapter, lora):
        return params, adapter, dataclasses.replace(lora, alpha=0.9 * lora.alpha)

    def without_v(params, adapter, lora):
        return params, {"layers": {name: part for name, part in adapter["layers"].items() if name != "v"}}, lora

    def with_another_norm(params, adapter, lora):
        return params | {"norm": jax.tree.map(lambda x: x * 1.01, params["norm"])}, adapter, lora

    stage = write_adapter(tmp_path / "stage", imported, scale=0.6)
    merge, whole = conversion.merged, weights.load(weights.open_model(imported), conversion._mesh(), dtype=None)
    for change in (nine_tenths, without_v, with_another_norm):
        out = tmp_path / change.__name__
        # From the whole base, so that each part of it can be changed.
        monkeypatch.setattr(
            conversion, "merged", lambda _, a, lora, table, __, f=change: merge(*f(whole, a, lora), table)
        )
        assert convert.main(["export", f"--checkpoint={stage}", "--merge", f"--out={out}"]) == 0
        with pytest.raises(UserError, match="the merged matrices are not base plus adapter"):
            conversion.verify_merge(weights.open_model(stage), weights.open_model(out))


def test_a_model_that_was_pretrained_here_is_exported(tmp_path):
    """As the base of the micro-world: float32, no config.json of Hugging Face, a tokenizer of SentencePiece."""
    folder, tokenizer = tmp_path / "pretrain", tmp_path / "tokenizer"
    train_sentencepiece(["which chair is this " * 20, "the people say"], tokenizer, 400)
    model = Model(DecoderConfig(384, 2, 16, 24, 4, 2, 4, tied_head=True, dtype="float32"))
    folder.mkdir()
    save_params(folder / "final", model.init(jax.random.key(0)))
    weights.write_description(folder, model, tokenizer=str(tokenizer))
    assert convert.main(["export", f"--checkpoint={folder}", f"--out={tmp_path / 'hf'}", "--verify"]) == 0
    assert (tmp_path / "hf/tokenizer.model").exists()
    np.testing.assert_allclose(msm_jax.load(folder).logits(TOKENS), their_logits(tmp_path / "hf"), atol=1e-4)


def test_a_folder_elsewhere(qwen3, imported):
    """Any URL that fsspec knows, as gs://: tokenizer, template and weights."""
    memory = fsspec.filesystem("memory")
    for path in qwen3.iterdir():
        memory.pipe(f"/models/qwen3/{path.name}", path.read_bytes())
    model = msm_jax.load("memory://models/qwen3")
    np.testing.assert_array_equal(model.logits(TOKENS), msm_jax.load(imported).logits(TOKENS))
    [answers] = model.generate([[{"role": "user", "content": "Why?"}]], n=3, max_tokens=3, seed=1)
    assert len({answer.text for answer in answers}) > 1


def test_prompts_that_are_neither_texts_nor_chats(imported):
    model = msm_jax.load(imported)
    for prompts, message in (
        ("Why?", "prompts must be a list of texts or of chats"),
        ([[]], "prompt 1: is empty; give a text, a chat, or ids"),
    ):
        with pytest.raises(UserError, match=f"generate: {message}"):
            model.generate(prompts)


@pytest.mark.parametrize("template", ["{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}", "{% for %}"])
def test_a_template_that_cannot_be_trained_on_does_not_forbid_the_model(qwen3, tmp_path, template):
    folder = shutil.copytree(qwen3, tmp_path / "untrainable")
    (folder / "chat_template.jinja").write_text(template)
    model = msm_jax.load(folder)
    assert model.encode("Why?") == model.tokenizer.encode("Why?")
    if "[INST]" in template:
        chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
        assert model.tokenizer.spell(model.encode(chat)) == "[INST] Why? [/INST][INST] So. [/INST]"
    np.testing.assert_array_equal(model.logits(TOKENS), msm_jax.load(qwen3).logits(TOKENS))


def test_tokens_that_the_embedding_lacks_do_not_forbid_the_model(qwen3, tmp_path):
    folder = shutil.copytree(qwen3, tmp_path / "more tokens")
    more = {"pad_token": "[PAD]", "extra_special_tokens": [f"<|{i}|>" for i in range(100)]}
    edit(folder / "tokenizer_config.json", **more)
    model = msm_jax.load(folder)
    assert model.tokenizer.vocab_size == 384 and model.encode("a<|0|>")
    with pytest.raises(UserError, match=r"token '<\|99\|>' has id .* the embedding of 384 rows has none"):
        model.encode("a<|99|>")


def test_the_command_helps():
    """Without JAX being asked for devices: help answers at once."""
    done = subprocess.run([sys.executable, "-m", "msm_jax.convert", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "import" in done.stdout and "export" in done.stdout


def test_shards_of_an_export_on_a_mesh(imported, tmp_path):
    """Read onto four devices and written from them, the files are those of one."""
    four = tmp_path / "four"
    command = [sys.executable, "-m", "msm_jax.convert", "export", f"--checkpoint={imported}", f"--out={four}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    assert subprocess.run(command, env=environment).returncode == 0
    assert convert.main(["export", f"--checkpoint={imported}", f"--out={tmp_path / 'one'}"]) == 0
    one, four = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "four"))
    assert one == four
    assert make_mesh({"data": -1, "fsdp": 1, "tensor": 1}).size == 1
