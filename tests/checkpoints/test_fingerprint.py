"""Weights are named by what they are: replies of one model are never taken for those of another."""

import json
import shutil

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from msm_jax.checkpoints import weights
from msm_jax.checkpoints.tensor_files import TensorFiles
from msm_jax.storage import files
from tests.tiny_checkpoints import write_adapter


@pytest.fixture(scope="module")
def twice(imported, tmp_path_factory):
    """`adapter`, twice as strong. A checksum that is linear in the bits is the same for both."""
    return write_adapter(tmp_path_factory.mktemp("twice") / "stage", imported, scale=0.4)


@pytest.fixture(scope="module")
def peft(imported, tmp_path_factory):
    """Two adapters of `peft` that differ in one row, between the samples that a look at large files takes."""
    draw, rank = np.random.default_rng(0), 1024
    arrays = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.{name}.weight": draw.random(shape, np.float32)
        for layer in range(2)
        for name, shape in (("lora_A", (rank, 32)), ("lora_B", (64, rank)))
    }
    config = {"base_model_name_or_path": str(imported), "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
    config |= {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    for folder in folders:
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(arrays, folder / "adapter_model.safetensors")
        next(iter(arrays.values()))[rank // 3] += 1
    return folders


def fingerprint(folder):
    return weights.fingerprint_of(weights.open_model(folder))


def test_each_number_of_an_adapter_of_ours_counts(adapter, twice):
    one, other = ((folder / "final" / "meta" / "metadata").read_bytes() for folder in (adapter, twice))
    assert one == other, "what is looked at in bases tells them apart, so this test shows nothing"
    assert fingerprint(adapter) != fingerprint(twice)


def test_each_number_of_an_adapter_of_peft_counts(peft):
    one, other = (TensorFiles(folder, "adapter_model").fingerprint for folder in peft)
    assert one == other, "what is looked at in bases tells them apart, so this test shows nothing"
    assert fingerprint(peft[0]) != fingerprint(peft[1])


def test_an_adapter_is_the_same_wherever_it_lies(adapter, twice, peft, memory, tmp_path):
    for number, folder in enumerate((adapter, twice, *peft)):
        copy, url = shutil.copytree(folder, tmp_path / str(number)), f"{memory}/{number}"
        (linked := tmp_path / f"linked-{number}").symlink_to(folder)
        fsspec.filesystem("memory").put(f"{folder}/", url, recursive=True)
        assert fingerprint(folder) == fingerprint(copy) == fingerprint(linked) == fingerprint(url)


def test_a_base_is_named_as_ever(qwen3, imported):
    """From little of it: it may be large. And stores hold replies by this name."""
    assert fingerprint(qwen3) == TensorFiles(qwen3).fingerprint
    checksums = (imported / "final" / "meta" / "metadata").read_bytes()
    assert fingerprint(imported) == files.fingerprint_of_bytes(checksums)
