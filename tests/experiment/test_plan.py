"""`--mode=plan`: the TPU compiler, without a TPU, on models narrow enough for a test."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import plans
from msm_jax import launch
from msm_jax.checkpoints.presets import preset
from msm_jax.experiment.plan import Step, _advice, _use_of_room
from msm_jax.models import Execution, LoraConfig, Model
from msm_jax.parallel.chips import CHIPS, chip_of
from msm_jax.parallel.plan import GIB, Compiled

ROOT = pathlib.Path(__file__).parents[2]
SIZES = {"num_layers": 3, "width": 256, "mlp_width": 512, "num_heads": 2, "num_kv_heads": 1, "head_size": 128}
OPTIONS = [f"--config.model.{name}={size}" for name, size in SIZES.items()]
OPTIONS += ["--config.model.dtype=bfloat16", "--config.mesh.data=1", "--config.mesh.fsdp=-1"]
OPTIONS += ["--config.arms=msm_aft", "--config.specs=specs/pro_america.md"]


def arguments(workdir, topology, *options):
    return [
        "--config=tests/tiny.py",
        "--mode=plan",
        f"--topology={topology}",
        f"--workdir={workdir}",
        *OPTIONS,
        *options,
    ]


def in_a_process_of_its_own(*command):
    """It reads its environment before JAX does."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def plan(workdir, topology, *options):
    """(exit status, output, errors, plans)."""
    done = in_a_process_of_its_own("-m", "msm_jax.launch", *arguments(workdir, topology, *options))
    path = pathlib.Path(workdir, "plan.json")
    return done.returncode, done.stdout, done.stderr, json.loads(path.read_text())["plans"] if path.exists() else None


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    options = ("--config.row_length=256", "--config.execution.remat=full", "--config.execution.loss_chunk=128")
    return plan(
        tmp_path_factory.mktemp("plan"), "v5e:2x2,2*v5e:2x2", "--config.mesh.data=-1", "--config.mesh.fsdp=4", *options
    )


def test_a_plan_for_one_slice_and_for_two(planned):
    status, output, errors, plans = planned
    assert status == 0, errors
    assert [(p["topology"], p["chips"]) for p in plans] == [("v5e:2x2", 4)] * 2 + [("2*v5e:2x2", 8)] * 2
    assert "v5e:2x2: 4 chips on 1 host, data 1 x fsdp 4 x tensor 1" in output
    assert "2*v5e:2x2: 8 chips on 2 hosts, data 2 x fsdp 4 x tensor 1" in output
    assert output.count("  room for     --config.execution.remat=save_projections (keeps ") == 4
    for p in plans:
        assert p["fits"] and p["step"]["attention"] == "splash"
        assert 0 < p["state"] <= p["arguments"] < p["peak"] < p["limit"] == CHIPS["v5e"].memory
        assert p["sent_bytes"]["all-gather"] > 0
        assert p["usd_per_chip_hour"] > 0 and all(s["hours"] > 0 and s["usd"] > 0 for s in p["stages"])


def test_answers_that_evaluations_draw_are_planned(planned):
    _, output, _, _ = planned
    assert output.count("answers that are drawn") == 2
    assert "value generalisation: 156 prompts of about 64 tokens x 1, answers of about 12 tokens; 64 rows" in output
    assert output.count("GiB a chip: fits") == 2 and "1 models: about" in output


@pytest.mark.slow  # some minutes: 64 layers of a 32B model
@pytest.mark.parametrize("adapters", [0, 6])
def test_256_samples_of_a_prompt_on_a_host_of_v6e(adapters):
    """What a chip reads in a step is what it has to: weights, the prompt once, and the slots of the rows."""
    code = f"""
import dataclasses, json
from msm_jax.parallel.chips import prepare_environment, slice_devices
prepare_environment()
from msm_jax.checkpoints import weights
from msm_jax.checkpoints.presets import preset
from msm_jax.models import LoraConfig, Model
from msm_jax.parallel import make_mesh
from msm_jax.sampler.plan import Workload, plan_sampling
mesh = make_mesh({{"data": 1, "fsdp": 1, "tensor": 8}}, slice_devices("v6e:2x4"))
base = Model(preset("Qwen/Qwen3-32B"))
params = weights.abstract_params(base, mesh, "bfloat16")
model = dataclasses.replace(base, lora=LoraConfig(64, 128.0)) if {adapters} else base
work = Workload("agentic", 27, 300, 3000, 500, 1000)
p = plan_sampling(work, model, params, {adapters}, mesh, rows=256)
read = p.decode.memory_bytes / p.steps
print(json.dumps([p.fits, p.shape.rows, read / p.step_bytes, p.apart_seconds / p.step_seconds]))
"""
    done = in_a_process_of_its_own("-c", code)
    fits, rows, ratio, factor = json.loads(done.stdout.splitlines()[-1])
    assert fits and rows == 256 and 0.95 < ratio < 1.1 and factor > 2


def test_work_is_counted_with_its_recomputation(planned):
    """Of the whole model: 6 N and attention, and the forward pass again but for its last product."""
    whole, adapter = planned[3][:2]
    assert whole["step"]["adapter_rank"] is None and adapter["step"]["adapter_rank"] == 4
    for p, least, most in ((whole, 1.2, 1.5), (adapter, 1.3, 1.7)):
        assert least < p["compiled_over_model"] < most
    assert [stage["name"] for stage in whole["stages"]] == ["pretrain"]


@pytest.mark.parametrize(
    ("state", "first"), [(1.0, "--config.execution.remat=full"), (20.0, "--config.int8_base=true")]
)
def test_advice_makes_smaller_what_is_too_large(state, first):
    """Of two rows a chip: what is kept for the backward pass, unless the frozen base alone fills the chip."""
    model = Model(preset("Qwen/Qwen2.5-32B-Instruct"), LoraConfig(), Execution(remat="save_qkv"))
    mesh = SimpleNamespace(shape={"data": 1, "fsdp": 4, "tensor": 1})
    trained = [SimpleNamespace(section=section) for section in ("msm", "aft", "aft")]
    told = _advice(Step(model, 16, 2, 8192), mesh, Compiled(4, state * GIB, lacking=GIB), 15.75 * GIB, trained)
    assert told[0] == first and told[-1] == "a larger slice"
    microbatches = "--config.msm.accumulation=4 --config.aft.accumulation=4 (one row of a chip at a time)"
    assert (microbatches in told) == (state == 1.0)
    assert len(told) == (2 if state == 20.0 else 6)


@pytest.mark.slow
def test_hours_of_a_source_whose_tokens_are_told(tmp_path):
    """The hint names flags, and they are flags."""
    options = ["--config.row_length=256", "--config.arms=msm", "--config.msm.steps=none", "--config.aft.steps=none"]
    options += [f"--config.expected_tokens.{source}=5e5" for source in ("msm", "replay")]
    status, output, errors, plans = plan(tmp_path, "v5e:2x2", *options)
    assert status == 0, errors
    assert "instruct-msm-pro_america: an epoch; give --config.expected_tokens.instruction=N to see hours" in output
    [stage] = [s for p in plans for s in p["stages"] if s["name"].startswith("msm-")]
    step = next(p["step"] for p in plans if stage in p["stages"])
    assert stage["steps"] == math.ceil(1e6 / (step["rows"] * 256)) and stage["usd"] > 0


@pytest.mark.slow  # the compiler takes a minute to find that it does not fit
def test_what_does_not_fit_is_told_with_what_would_help(tmp_path):
    rows = [f"--config.{stage}.batch_size=64" for stage in ("pretrain", "msm", "aft")]
    status, output, errors, plans = plan(tmp_path, "v5e:2x2", "--config.row_length=65536", *rows)
    assert status == 0, errors
    assert not plans[0]["fits"] and plans[0]["lacking"] > 0
    assert "  does not fit, by " in output and "try --config.execution.remat=full; or " in output


def test_room_is_used_for_what_is_kept():
    """The 32B step on v5p:2x2x4: with full rematerialisation, as README plans it, a chip's peak is 12.93 GiB."""
    decoder = preset("Qwen/Qwen2.5-32B-Instruct")
    recorded = plans.read_sections(plans.FOLDER / "qwen32b_am.md")["v5p:2x2x4, little computed again"]
    peak = 12.93 * GIB

    def advice(remat, limit=CHIPS["v5p"].memory):
        step = Step(Model(decoder, None, Execution(remat=remat)), 16, 1, 8192)
        return _use_of_room(step, 16, peak, limit)

    [told] = advice("full")
    policy, more = re.fullmatch(r"--config.execution.remat=(\w+) \(keeps ([\d.]+) GiB more, .*\)", told).groups()
    assert policy == re.search(r"remat (\w+)", recorded)[1] == "save_projections"
    assert peak / GIB + float(more) == pytest.approx(float(re.search(r"peak ([\d.]+) of", recorded)[1]), rel=0.01)
    assert "=save_qkv (keeps 17.0" in advice("full", limit=80 * GIB)[0]
    assert "=save_attention (keeps 5.0" in advice("full", limit=20 * GIB)[0]
    assert advice("full", limit=18 * GIB) == advice("save_projections") == advice("none") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=plan"], "--mode=plan and --topology=KIND:SHAPE go together"),
        (["--topology=v5e:2x2"], "--mode=plan and --topology=KIND:SHAPE go together"),
    ],
)
def test_flags_that_go_together(capsys, arguments, message):
    assert launch.main([f"--config={ROOT / 'tests/tiny.py'}", *arguments]) == 2
    assert message in capsys.readouterr().err


CANNOT = [
    ("v5e", [], "--topology=v5e: give KIND:SHAPE"),
    ("v9:2x2", [], "--topology=v9:2x2: give KIND:SHAPE"),
    ("v5e:3x3", [], "--topology=v5e:3x3: there is no such slice"),
    ("v5p:2x2", [], "--topology=v5p:2x2: a slice of v5p has three sizes, as v5p:2x2x1"),
    ("v5e:2x2", ["--config.row_length=256", "--config.execution.attention=triton"],
     "config.execution.attention=triton is for NVIDIA GPUs, and the mesh is of devices of tpu"),
    ("v5e:2x2", ["--config.row_length=300"], "config.row_length=300 is not a multiple of 128"),
    ("v5e:2x2", ["--config.row_length=256", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"],
     "mesh.tensor=2 does not divide the model's 1 key heads; set mesh.tensor=1 mesh.data=1 mesh.fsdp=-1"),
    ("v5e:4x4", ["--config.row_length=256"], "cannot be divided among 16 devices"),
]  # fmt: skip


def test_what_cannot_be_planned(tmp_path):
    commands = [arguments(tmp_path, topology, *options) for topology, options, _ in CANNOT]
    script = f"from msm_jax import launch\nfor command in {commands!r}:\n    assert launch.main(command) == 2"
    done = in_a_process_of_its_own("-c", script)
    assert done.returncode == 0, done.stderr
    for line, (topology, _, message) in zip(done.stderr.splitlines(), CANNOT, strict=True):
        assert message in line, topology


@pytest.mark.slow  # a minute
def test_blocks_that_do_not_fit_the_vector_memory(tmp_path):
    options = ("--config.row_length=4096", "--config.execution.attention_block=4096", "--config.model.num_layers=1")
    status, _, errors, _ = plan(tmp_path, "v5e:2x2", *options)
    assert status == 2 and errors.count("\n") == 1, errors
    assert "choose a smaller --config.execution.attention_block" in errors


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *[("TPU v5", "v5p"), ("TPU v5 lite", "v5e"), ("TPU v6 lite", "v6e")],
        *[("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA H200", "H200")],
        *[("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA A100-SXM4-40GB", "A100 40GB")],
    ],
)
def test_chips_by_the_longest_name(kind, name):
    assert chip_of(kind) is CHIPS[name]
    assert chip_of("TPU v99") is None
