"""The scripts that run experiments elsewhere: what they would do, and that shellcheck finds nothing in them."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
RUN = ["--config=configs/qwen32b_am.py", "--workdir=gs://bucket/run"]
SLICE = ["--name=msm", "--zone=us-central2-b", "--topology=v5p:2x2x4", "--dry-run"]


def launch(script, *arguments, **environment):
    return subprocess.run(
        ["bash", f"launch/{script}", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck") or str(pathlib.Path(sys.executable).with_name("shellcheck"))
    done = subprocess.run([shellcheck, *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_slice_is_made_and_the_launcher_runs_on_all_workers():
    done = launch(
        "tpu_vm.sh", *SLICE, "--project=p", "--spot", "--", *RUN, "--config.seeds=(0, 1)", HF_TOKEN="hf_secret"
    )
    assert done.returncode == 0, done.stderr
    create, *_, send, install, run = done.stdout.splitlines()
    place = "--zone=us-central2-b --project=p"
    kind = "--type=v5p --topology=2x2x4 --spot --version=v2-alpha-tpuv5"
    assert create.strip() == f"gcloud compute tpus tpu-vm create msm {place} {kind}"
    assert " tpu-vm scp " in send and send.strip().endswith(f" msm: {place} --worker=all")
    assert "make_environment\\ tpu\\,gcs" in install
    assert "-m\\ msm_jax.launch\\ --config=configs/qwen32b_am.py\\ --workdir=gs://bucket/run" in run
    assert "hf_secret" not in done.stdout + done.stderr, "a key goes along in a file"


def test_a_place_in_the_queue():
    done = launch("tpu_vm.sh", *SLICE, "--queued", "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gcloud compute tpus queued-resources create msm --zone=us-central2-b --type=v5p ")
    assert "--runtime-version=v2-alpha-tpuv5 --node-id=msm" in done.stdout


def test_a_slice_is_deleted():
    done = launch("tpu_vm.sh", "--name=msm", "--zone=z", "--delete", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert [line.split()[3:5] for line in done.stdout.splitlines()] == [
        ["tpu-vm", "delete"],
        ["queued-resources", "delete"],
    ]


def test_a_workload_on_gke():
    flags = ["--cluster=c", "--workload=w", "--zone=z", "--dry-run"]
    for topology, kind in (("2*v5p:2x2x4", "v5p-32 --num-slices=2"), ("v5e:4x4", "v5litepod-16 --num-slices=1")):
        done = launch("xpk.sh", *flags, f"--topology={topology}", "--", *RUN, HF_TOKEN="hf_secret")
        assert done.returncode == 0, done.stderr
        assert f" --tpu-type={kind} " in done.stdout and "msm_jax.launch" in done.stdout
        assert "hf_secret" not in done.stdout


def test_a_job_for_slurm():
    done = launch(
        "slurm.sh", "--nodes=2", "--gpus=8", "--time=12:00:00", "--dry-run", "--", RUN[0], "--workdir=/shared/run"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in ("#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=8", "#SBATCH --time=12:00:00", "#SBATCH --requeue"):
        assert line in lines
    assert lines[-1].startswith("exec srun .venv/bin/python -m msm_jax.launch --config=configs/qwen32b_am.py ")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_vm.sh", ["--zone=z"], "give --name and --zone"),
        (
            "tpu_vm.sh",
            ["--name=a", "--zone=z", "--topology=v4:2x2x1", "--", *RUN],
            "--topology=v4:2x2x1: give KIND:SHAPE",
        ),
        ("tpu_vm.sh", ["--name=a", "--zone=z", "--topology=v5e", "--", *RUN], "--topology=v5e: give KIND:SHAPE"),
        ("tpu_vm.sh", [*SLICE, "--", RUN[0]], "give --workdir=gs://BUCKET/FOLDER after --"),
        (
            "tpu_vm.sh",
            [*SLICE, "--", "--config=configs/none.py", RUN[1]],
            "--config=configs/none.py: no such file here",
        ),
        (
            "tpu_vm.sh",
            [*SLICE, "--config=configs/qwen32b_am.py"],
            "is no option of this script; what is for the launcher",
        ),
        ("xpk.sh", ["--cluster=c"], "give --cluster, --workload and --zone"),
        (
            "xpk.sh",
            ["--cluster=c", "--workload=w", "--zone=z", "--topology=v5e-16"],
            "--topology=v5e-16: give KIND:SHAPE",
        ),
        ("slurm.sh", ["--nodes=2"], "give --nodes=N and --gpus=G"),
        ("slurm.sh", ["--nodes=2", "--gpus=1", "--", RUN[0]], "give --workdir=DIR after --"),
    ],
)
def test_mistakes(script, arguments, message):
    done = launch(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not done.stdout
