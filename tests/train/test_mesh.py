"""Eight devices, in any mesh, train as one does. All of it happens in one process of eight virtual CPU devices."""

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
MODELS, MESHES = ("full", "lora", "int8"), ("fsdp", "all")


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """What `mesh_worker.py` found, and what XLA said meanwhile."""
    path = tmp_path_factory.mktemp("mesh") / "facts.json"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "train" / "mesh_worker.py"), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stderr


@pytest.fixture(scope="module")
def facts(worker):
    return worker[0]


def test_minus_one_takes_the_remaining_devices(facts):
    assert facts["full/one"]["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
    assert facts["full/fsdp"]["mesh"] == {"data": 1, "fsdp": 4, "tensor": 2}
    assert facts["full/all"]["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", MODELS)
def test_losses_and_weights_are_those_of_one_device(facts, model, mesh):
    one, many = facts[f"{model}/one"], facts[f"{model}/{mesh}"]
    assert len(many["losses"]) == 20 and many["losses"][0] != many["losses"][-1]
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(many["weights"], one["weights"], atol=5e-6)


@pytest.mark.parametrize("model", MODELS)
def test_weights_and_moments_are_split(facts, model):
    """Every array but counters and norms; of each device's part the size says over how many devices."""
    layouts = facts[f"{model}/all"]["after"]
    arrays = {**layouts["state"], **{f"frozen/{path}": array for path, array in layouts["frozen"].items()}}
    assert any(path.startswith("frozen/") for path in arrays) == (model != "full")
    for path, array in arrays.items():
        ways = {math.prod(array["whole"]) // math.prod(part) for part in array["parts"]}
        if path.endswith(("/scale", "step", "/count")):
            expected = 1
        elif path.endswith(("/q/lora_a", "/down/lora_b")):
            expected = 2  # embed over fsdp; the rank is whole
        elif path.endswith("/kernel_scale"):
            expected = 2  # over fsdp or tensor, as its outputs are
        else:
            expected = 4  # fsdp x tensor; data holds copies
        assert ways == {expected}, path
    assert arrays["params/layers/down/" + ("kernel" if model == "full" else "lora_a")]["parts"] == (
        [[2, 12, 8]] if model == "full" else [[2, 6, 2]]
    )


@pytest.mark.parametrize("model", MODELS)
def test_moments_lie_where_their_parameters_lie(facts, model):
    state = facts[f"{model}/fsdp"]["after"]["state"]
    params = {path.removeprefix("params/"): array for path, array in state.items() if path.startswith("params/")}
    for moment in ("mu", "nu"):
        found = {p.split(f"/{moment}/")[1]: array for p, array in state.items() if f"/{moment}/" in p}
        assert found == params


@pytest.mark.parametrize("mesh", ("one", *MESHES))
@pytest.mark.parametrize("model", MODELS)
def test_a_step_compiles_once_and_leaves_everything_in_place(facts, model, mesh):
    run = facts[f"{model}/{mesh}"]
    assert run["compilations"] == [1] + [0] * 19
    assert run["before"] == run["after"]
    assert all(run["deleted"]), "a state that is not donated is held twice"


def test_no_activation_is_replicated_on_all_devices(worker):
    assert "rematerialization" not in worker[1]
