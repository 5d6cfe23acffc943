"""The scripts that run experiments elsewhere: what they would do, and that shellcheck finds nothing in them."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
RUN = ["--config=configs/qwen32b_am.py", "--workdir=gs://bucket/run"]
SLICE = ["--name=msm", "--zone=us-east5-a", "--topology=v5p:2x2x4", "--dry-run"]


def launch(script, *arguments, **environment):
    return subprocess.run(
        ["bash", f"launch/{script}", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
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
    place = "--zone=us-east5-a --project=p"
    kind = "--type=v5p --topology=2x2x4 --spot --version=v2-alpha-tpuv5"
    assert create.strip() == f"gcloud alpha compute tpus tpu-vm create msm {place} {kind}"
    assert " tpu-vm scp " in send and send.strip().endswith(f" msm: {place} --worker=all")
    assert "make_environment\\ tpu\\,gcs" in install
    assert "launch/worker.sh" in run and "\\ --config=configs/qwen32b_am.py\\ --workdir=gs://bucket/run" in run
    assert "hf_secret" not in done.stdout + done.stderr, "a key goes along in a file"


SECRETS = {
    "GEMINI_API_KEY": "secret-1",
    "GOOGLE_API_KEY": "secret-2",
    "LOCAL_API_KEY": "a 'secret' 3",
    "HF_HOME": "/no",
}


def test_all_keys_that_a_configuration_may_need_go_along():
    """In a file; those that are set here and do not are named, and none is shown."""
    write = "source launch/cloud.sh; write_keys /dev/fd/3 3>&1 >/dev/null"
    environment = {name: value for name, value in os.environ.items() if not name.endswith(("_KEY", "_TOKEN"))}
    environment |= SECRETS | {"HF_TOKEN": "secret-4", "OTHER_API_KEY": "secret-5", "UNRELATED": "secret-6"}
    done = subprocess.run(["bash", "-c", write], cwd=ROOT, env=environment, capture_output=True, text=True)
    # As a worker reads them.
    show = f"set -a; {done.stdout}\n" + "printenv GEMINI_API_KEY GOOGLE_API_KEY LOCAL_API_KEY HF_TOKEN OTHER_API_KEY"
    got = subprocess.run(["bash", "-c", show], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert got.stdout.splitlines() == ["secret-1", "secret-2", "a 'secret' 3", "secret-4"]
    assert done.stderr == "note: these are set here, and the workers will not have them: OTHER_API_KEY\n"


def test_every_key_that_the_code_reads_is_among_them():
    named = re.search(r"^keys=\((.*)\)$", (ROOT / "launch/cloud.sh").read_text(), re.MULTILINE)[1].split()
    code = [path.read_text() for folder in ("msm_jax", "eval") for path in (ROOT / folder).rglob("*.py")]
    read = {name for text in code for name in re.findall(r'"([A-Z][A-Z_]*_(?:API_KEY|TOKEN))"', text)}
    assert read and read | {"HF_TOKEN", "HF_ENDPOINT"} <= set(named)


def test_a_place_in_the_queue():
    done = launch("tpu_vm.sh", *SLICE, "--queued", "--", *RUN)
    assert done.returncode == 0, done.stderr
    create = "gcloud alpha compute tpus queued-resources create msm --zone=us-east5-a --type=v5p "
    assert done.stdout.startswith(create)
    assert "--runtime-version=v2-alpha-tpuv5 --node-id=msm" in done.stdout


def test_a_slice_is_deleted():
    done = launch("tpu_vm.sh", "--name=msm", "--zone=z", "--delete", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert [line.split()[3:5] for line in done.stdout.splitlines()] == [
        ["queued-resources", "delete"],
        ["tpu-vm", "delete"],
    ]


def test_a_workload_on_gke():
    flags = ["--cluster=c", "--workload=w", "--zone=z", "--dry-run"]
    for topology, kind in (("2*v5p:2x2x4", "v5p-32 --num-slices=2"), ("v5e:4x4", "v5litepod-16 --num-slices=1")):
        keys = {"HF_TOKEN": "hf_secret", "GEMINI_API_KEY": "secret"}
        done = launch("xpk.sh", *flags, f"--topology={topology}", "--", *RUN, **keys)
        assert done.returncode == 0, done.stderr
        assert f" --tpu-type={kind} " in done.stdout and "msm_jax.launch" in done.stdout
        assert "--script-dir=. " not in done.stdout, "a packed copy"
        assert "secret" not in done.stdout + done.stderr
        assert re.search("note: .*GEMINI_API_KEY, .*HF_TOKEN", done.stderr)


def test_a_job_for_slurm():
    done = launch(
        "slurm.sh", "--nodes=2", "--gpus=8", "--time=12:00:00", "--dry-run", "--", RUN[0], "--workdir=/shared/run"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in ("#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=8", "#SBATCH --time=12:00:00", "#SBATCH --requeue"):
        assert line in lines
    assert any(line.startswith("srun .venv/bin/python -m msm_jax.launch --config=configs/qwen32b_am") for line in lines)


@pytest.mark.parametrize(("status", "queued_again"), [(0, False), (1, False), (143, True)])
def test_a_job_for_slurm_that_reaches_its_time_limit_is_queued_again(tmp_path, status, queued_again):
    done = launch("slurm.sh", "--nodes=2", "--gpus=8", "--dry-run", "--", RUN[0], "--workdir=/shared/run")
    program(tmp_path / "srun", f"exit {status}")
    program(tmp_path / "scontrol", 'echo "$@"')
    path = f"{tmp_path}:{os.environ['PATH']}"
    job = subprocess.run(
        ["bash", "-c", done.stdout],
        env=os.environ | {"PATH": path, "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
    )
    assert job.returncode == status and job.stdout == ("requeue 7\n" if queued_again else "")


# The states of the slice and of its place in the queue are files with one state a line: a look takes the first, and the
# last stays. No file, no slice; a place in the queue that is active has one.
GCLOUD = """
[ "$1" != alpha ] || shift
cd "$CLOUD" && echo "$3 $4" >>calls
case "$3" in tpu-vm) file=node kind=nodes ;; *) file=queue kind=queuedResources ;; esac
case "$4" in
describe)
  [ ! -e error ] || { cat error >&2; exit 1; }
  if [ ! -e $file ]; then
    echo "ERROR: (gcloud) NOT_FOUND: Resource 'projects/p/locations/z/$kind/$5' was not found." >&2; exit 1
  fi
  head -n 1 $file
  [ "$(cat $file)" != ACTIVE ] || echo READY >node
  [ $(wc -l <$file) = 1 ] || sed -i 1d $file ;;
create)
  [ ! -e $file ] || { echo "ERROR: (gcloud) ALREADY_EXISTS" >&2; exit 1; }
  echo ACTIVE >queue; echo READY >node ;;
delete) rm $file; rm -f node ;;
ssh) echo "$*" >>commands ;;
esac
[ "$4" != "$(cat failing 2>/dev/null)" ]
"""


def program(path, text):
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path):
    """Runs tpu_vm.sh in a cloud of the given files; returns the run, and what gcloud was called for but looks."""

    def start(*arguments, **files):
        (tmp_path / "bin").mkdir()
        program(tmp_path / "bin" / "gcloud", GCLOUD)
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        done = launch(
            "tpu_vm.sh",
            *SLICE[:-1],
            *arguments,
            "--",
            *RUN,
            PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            CLOUD=str(tmp_path),
            MSM_JAX_POLL_SECONDS="0",
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        return done, [call for call in calls if not call.endswith(" describe")]

    return start


STARTED = ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]


def test_a_start_while_the_slice_is_queued_waits_for_it(cloud):
    done, calls = cloud("--queued", queue="ACCEPTED\nWAITING_FOR_RESOURCES\nPROVISIONING\nCREATING\nACTIVE\n")
    assert done.returncode == 0, done.stderr
    assert calls == STARTED


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_a_place_in_the_queue_that_is_spent_is_made_anew(cloud, state):
    done, calls = cloud("--queued", queue=f"{state}\n")
    assert done.returncode == 0, done.stderr
    assert calls == ["queued-resources delete", "queued-resources create", *STARTED]


@pytest.mark.parametrize("state", ["CREATING", "STARTING", "RESTARTING", "REPAIRING"])
def test_a_slice_that_is_on_its_way_is_waited_for(cloud, state):
    done, calls = cloud(node=f"{state}\n{state}\nREADY\n")
    assert done.returncode == 0, done.stderr
    assert calls == STARTED


@pytest.mark.parametrize("flags", [[], ["--queued"]])
def test_a_slice_that_was_taken_away_is_made_anew(cloud, flags):
    done, calls = cloud(*flags, node="PREEMPTED\n", **({"queue": "ACTIVE\n"} if flags else {}))
    resource = "queued-resources" if flags else "tpu-vm"
    assert done.returncode == 0, done.stderr
    assert calls == [f"{resource} delete", f"{resource} create", *STARTED]


def test_nothing_is_launched_where_the_copy_did_not_arrive(cloud):
    done, calls = cloud(node="READY\n", failing="scp")
    assert done.returncode == 2 and "ended with an error" in done.stderr
    assert calls == ["tpu-vm scp"]


def test_a_slice_that_is_taken_away_from_a_run_is_made_anew(cloud):
    done, calls = cloud(node="READY\nPREEMPTED\n", failing="ssh")
    once = ["tpu-vm scp", "tpu-vm ssh"]
    assert calls == [*once, "tpu-vm delete", "tpu-vm create", *once]
    assert "The slice was taken away" in done.stdout


def test_a_failing_run_is_an_error(cloud):
    done, _ = cloud(node="READY\n", failing="ssh")
    assert done.returncode == 2 and "ended with an error" in done.stderr


@pytest.mark.parametrize(
    "message",
    [
        "ERROR: (gcloud) PERMISSION_DENIED: denied on 'projects/p/locations/z/nodes/msm' (or it may not exist).",
        "ERROR: (gcloud) NOT_FOUND: Resource 'projects/p/locations/z' was not found.",
    ],
)
def test_an_error_of_gcloud_is_no_absent_slice(cloud, message):
    done, calls = cloud(error=message)
    assert done.returncode == 2 and message in done.stderr
    assert not calls


@pytest.fixture
def worker(tmp_path):
    """Starts launch/worker.sh beside a launcher that prints, waits for the file `end`, and ends with what it holds."""
    (tmp_path / "msm_jax/launch").mkdir(parents=True)
    (tmp_path / "msm_jax/.venv/bin").mkdir(parents=True)
    for name in ("worker.sh", "cloud.sh"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "msm_jax/launch")
    (tmp_path / "msm_jax.env").write_text("HF_TOKEN=hf_secret\n")
    program(
        tmp_path / "msm_jax/.venv/bin/python",
        'trap "exit 143" TERM; echo "$HF_TOKEN $*"; until [ -e end ]; do sleep .05; done; exit "$(cat end)"\n',
    )

    def start(*arguments):
        command = ["bash", tmp_path / "msm_jax/launch/worker.sh", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    yield start
    (tmp_path / "msm_jax/end").write_text("0")


def test_a_worker_follows_a_launcher_that_outlives_the_connection(worker, tmp_path):
    first = worker("1", "--config=a b")
    assert first.stdout.readline() == "hf_secret -m msm_jax.launch --config=a b\n"
    first.kill()
    other = worker("2", "--config=c")
    assert (
        "error: another run goes on here, --config=a\\ b" in other.communicate(timeout=20)[1] and other.returncode == 2
    )
    again = worker("2", "--config=a b")
    assert "goes on here" in again.stdout.readline()
    (tmp_path / "msm_jax/end").write_text("3")
    assert again.communicate(timeout=20)[0].count("msm_jax.launch") == 1 and again.returncode == 3
    # The same start, repeated by gcloud, is not another one; a later start is.
    repeated = worker("1", "--config=a b")
    assert repeated.communicate(timeout=20)[0].count("msm_jax.launch") == 1 and repeated.returncode == 3
    (tmp_path / "msm_jax/end").write_text("0")
    later = worker("3", "--config=a b")
    assert "goes on" not in later.communicate(timeout=20)[0] and later.returncode == 0


def test_a_worker_says_that_its_launcher_was_stopped(worker, tmp_path):
    started = worker("1", "--config=a")
    started.stdout.readline()
    os.killpg(int((tmp_path / "msm_jax_run/pid").read_text()), signal.SIGTERM)
    started.communicate(timeout=20)
    assert started.returncode == 143


def test_what_is_packed(tmp_path):
    """What git does not ignore, with what lies in a linked folder, and the corpora even if git ignores them."""
    configs = ("configs/a.py", "configs/__pycache__/a.pyc")
    for name in ("new.py", "gone.py", *configs, "data/a/msm.jsonl", "runs/x", ".venv/x"):
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_text("")
    (tmp_path / "repository/.gitignore").write_text("data\nruns/\n.venv\n__pycache__\n")
    (tmp_path / "repository/linked").symlink_to("configs")
    pack = (
        f"git init -q && git add gone.py && rm gone.py && source {ROOT}/launch/cloud.sh && pack_repository ../a.tgz"
        " && tar -tzf ../a.tgz"
    )
    done = subprocess.run(["bash", "-c", pack], cwd=tmp_path / "repository", capture_output=True, text=True)
    packed = [".gitignore", "configs/a.py", "data/a/msm.jsonl", "linked/a.py", "new.py"]
    assert done.stdout.split() == packed, done.stderr


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
        (
            "tpu_vm.sh",
            ["--name=a", "--zone=z", "--topology=v5p:2x2", "--", *RUN],
            "--topology=v5p:2x2: give KIND:SHAPE",
        ),
        ("tpu_vm.sh", [*SLICE, "--", RUN[0]], "give --workdir=gs://BUCKET/FOLDER after --"),
        (
            "tpu_vm.sh",
            [*SLICE, "--", "--config=configs/none.py", RUN[1]],
            "--config=configs/none.py: no such file here",
        ),
        (
            "tpu_vm.sh",
            [*SLICE, "--", f"--config={sys.executable}", RUN[1]],
            "does not reach the workers",
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
        (
            "xpk.sh",
            ["--cluster=c", "--workload=w", "--zone=z", "--topology=v5e:4x4x4"],
            "--topology=v5e:4x4x4: give KIND:SHAPE",
        ),
        (
            "xpk.sh",
            ["--cluster=c", "--workload=w", "--zone=z", "--topology=v5e:4x4", "--restarts=no"],
            "--restarts=no: give a number",
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
