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
RUN = ["--config=configs/qwen32b_am.py", "--workdir=gs://bucket/run"]
SLICE = ["--name=msm", "--zone=us-east5-a", "--topology=v5p:2x2x4"]
XPK = ["--cluster=c", "--workload=w", "--zone=z"]
SLURM = ["--nodes=2", "--gpus=8", "--time=12:00:00", "--", RUN[0], "--workdir=/shared/run"]
KEYS = {"HF_TOKEN": "hf_secret", "GEMINI_API_KEY": "secret"}


def bash(*arguments, **options):
    return subprocess.run(["bash", *arguments], capture_output=True, text=True, timeout=60, **{"cwd": ROOT} | options)


def launch(script, *arguments, **environment):
    return bash(f"launch/{script}", *arguments, env=os.environ | environment)


def program(path, text):
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck") or str(pathlib.Path(sys.executable).with_name("shellcheck"))
    done = subprocess.run([shellcheck, *(ROOT / "launch").glob("*.sh")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


CREATE = "^gcloud alpha compute tpus {} create msm --zone=us-east5-a {}--type=v5p --topology=2x2x4 {}"
OF_XPK = "--tpu-type={} .*--script-dir=/.*msm_jax.launch"  # a packed copy, not this folder


@pytest.mark.parametrize(
    ("script", "arguments", "lines"),
    [
        (
            "tpu_vm.sh",
            [*SLICE, "--project=p", "--spot", "--", *RUN, "--config.seeds=(0, 1)"],
            [
                CREATE.format("tpu-vm", "--project=p ", "--spot --version=v2-alpha-tpuv5 $"),
                " tpu-vm scp .* msm: --zone=us-east5-a --project=p --worker=all $",
                r"make_environment\\ tpu\\,gcs",
                r"launch/worker.sh.*\\ --config=configs/qwen32b_am.py\\ --workdir=gs://bucket/run",
            ],
        ),
        (
            "tpu_vm.sh",
            [*SLICE, "--queued", "--", *RUN],
            [CREATE.format("queued-resources", "", "--runtime-version=v2-alpha-tpuv5 --node-id=msm"), " scp ", " ssh "],
        ),
        ("tpu_vm.sh", [*SLICE[:2], "--delete"], ["queued-resources delete msm", "tpu-vm delete msm"]),
        ("xpk.sh", [*XPK, "--topology=2*v5p:2x2x4", "--", *RUN], [OF_XPK.format("v5p-32 --num-slices=2")]),
        ("xpk.sh", [*XPK, "--topology=v5e:4x4", "--", *RUN], [OF_XPK.format("v5litepod-16 --num-slices=1")]),
        (
            "slurm.sh",
            SLURM,
            [
                "^#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8$.*^#SBATCH --time=12:00:00\n#SBATCH --requeue$",
                "^srun .venv/bin/python -m msm_jax.launch --config=configs/qwen32b_am",
            ],
        ),
    ],
)
def test_what_would_be_run(script, arguments, lines):
    done = launch(script, "--dry-run", *arguments, **KEYS)
    assert done.returncode == 0, done.stderr
    assert re.search(".*".join(lines), done.stdout, re.DOTALL | re.MULTILINE), done.stdout
    assert "secret" not in done.stdout + done.stderr, "a key goes along in a file, or not at all"
    assert script != "xpk.sh" or re.search("note: .*GEMINI_API_KEY, .*HF_TOKEN", done.stderr)


def test_all_keys_that_a_configuration_may_need_go_along():
    """In a file; those that are set here and do not are named, and none is shown."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith(("_KEY", "_TOKEN"))}
    environment |= {"GEMINI_API_KEY": "secret-1", "GOOGLE_API_KEY": "secret-2", "LOCAL_API_KEY": "a 'secret' 3"}
    environment |= {"HF_HOME": "/no", "HF_TOKEN": "secret-4", "OTHER_API_KEY": "secret-5", "UNRELATED": "secret-6"}
    done = bash("-c", "source launch/cloud.sh; write_keys /dev/fd/3 3>&1 >/dev/null", env=environment)
    # As a worker reads them.
    show = f"set -a; {done.stdout}\n" + "printenv GEMINI_API_KEY GOOGLE_API_KEY LOCAL_API_KEY HF_TOKEN OTHER_API_KEY"
    got = bash("-c", show, env={"PATH": os.environ["PATH"]})
    assert got.stdout.splitlines() == ["secret-1", "secret-2", "a 'secret' 3", "secret-4"]
    assert done.stderr == "note: these are set here, and the workers will not have them: OTHER_API_KEY\n"


def test_every_key_that_the_code_reads_is_among_them():
    named = re.search(r"^keys=\((.*)\)$", (ROOT / "launch/cloud.sh").read_text(), re.MULTILINE)[1].split()
    code = [path.read_text() for folder in ("msm_jax", "eval") for path in (ROOT / folder).rglob("*.py")]
    read = {name for text in code for name in re.findall(r'"([A-Z][A-Z_]*_(?:API_KEY|TOKEN))"', text)}
    read.remove("MSM_JAX_API_KEY")  # of the server, which these scripts do not start
    assert read and read | {"HF_TOKEN", "HF_ENDPOINT"} <= set(named)


@pytest.mark.parametrize(("status", "queued_again"), [(0, False), (1, False), (143, True)])
def test_a_job_for_slurm_that_reaches_its_time_limit_is_queued_again(tmp_path, status, queued_again):
    program(tmp_path / "srun", f"exit {status}")
    program(tmp_path / "scontrol", 'echo "$@"')
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = bash("-c", launch("slurm.sh", "--dry-run", *SLURM).stdout, env=environment)
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


SENT = ["tpu-vm scp", "tpu-vm ssh"]
STARTED = [*SENT, "tpu-vm ssh"]
ANEW = ["tpu-vm delete", "tpu-vm create"]
QUEUED_ANEW = ["queued-resources delete", "queued-resources create"]
FAILED = "ended with an error"
DENIED = "ERROR: (gcloud) PERMISSION_DENIED: denied on 'projects/p/locations/z/nodes/msm' (or it may not exist)."
NO_ZONE = "ERROR: (gcloud) NOT_FOUND: Resource 'projects/p/locations/z' was not found."


@pytest.mark.parametrize(
    ("flags", "files", "calls", "told"),
    [
        # One that is queued, or on its way, is waited for.
        (["--queued"], {"queue": "ACCEPTED\nWAITING_FOR_RESOURCES\nPROVISIONING\nCREATING\nACTIVE\n"}, STARTED, None),
        ([], {"node": "CREATING\nSTARTING\nRESTARTING\nREPAIRING\nREADY\n"}, STARTED, None),
        # A place in the queue that is spent, or a slice that was taken away, is made anew.
        (["--queued"], {"queue": "SUSPENDED\n"}, [*QUEUED_ANEW, *STARTED], None),
        (["--queued"], {"queue": "FAILED\n"}, [*QUEUED_ANEW, *STARTED], None),
        ([], {"node": "PREEMPTED\n"}, [*ANEW, *STARTED], None),
        (["--queued"], {"node": "PREEMPTED\n", "queue": "ACTIVE\n"}, [*QUEUED_ANEW, *STARTED], None),
        # Where it was taken away from a run, too.
        ([], {"node": "READY\nPREEMPTED\n", "failing": "ssh"}, [*SENT, *ANEW, *SENT], "taken away"),
        # Nothing is launched where the copy did not arrive, and a failing run is an error.
        ([], {"node": "READY\n", "failing": "scp"}, SENT[:1], FAILED),
        ([], {"node": "READY\n", "failing": "ssh"}, SENT, FAILED),
        # An error of gcloud is no absent slice.
        ([], {"error": DENIED}, [], DENIED),
        ([], {"error": NO_ZONE}, [], NO_ZONE),
    ],
)
def test_a_slice_in_any_state(tmp_path, flags, files, calls, told):
    """`calls`: what gcloud is called for, but looks; `told`: why the script fails."""
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin" / "gcloud", GCLOUD)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CLOUD": str(tmp_path)}
    done = launch("tpu_vm.sh", *SLICE, *flags, "--", *RUN, **environment, MSM_JAX_POLL_SECONDS="0")
    called = (tmp_path / "calls").read_text().splitlines()
    assert [call for call in called if not call.endswith(" describe")] == calls
    assert done.returncode == (2 if told else 0) and (told or "") in done.stdout + done.stderr


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
    pack = f"git init -q && git add gone.py && rm gone.py && source {ROOT}/launch/cloud.sh && pack_repository ../a.tgz"
    done = bash("-c", f"{pack} && tar -tzf ../a.tgz", cwd=tmp_path / "repository")
    packed = [".gitignore", "configs/a.py", "data/a/msm.jsonl", "linked/a.py", "new.py"]
    assert done.stdout.split() == packed, done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_vm.sh", ["--zone=z"], "give --name and --zone"),
        ("tpu_vm.sh", [*SLICE[:2], "--topology=v4:2x2x1", "--", *RUN], "--topology=v4:2x2x1: give KIND:SHAPE"),
        ("tpu_vm.sh", [*SLICE[:2], "--topology=v5e", "--", *RUN], "--topology=v5e: give KIND:SHAPE"),
        ("tpu_vm.sh", [*SLICE[:2], "--topology=v5p:2x2", "--", *RUN], "--topology=v5p:2x2: give KIND:SHAPE"),
        ("tpu_vm.sh", [*SLICE, "--", RUN[0]], "give --workdir=gs://BUCKET/FOLDER after --"),
        (
            "tpu_vm.sh",
            [*SLICE, "--", "--config=configs/none.py", RUN[1]],
            "configs/none.py: no such file here",
        ),
        ("tpu_vm.sh", [*SLICE, "--", f"--config={sys.executable}", RUN[1]], "does not reach the workers"),
        ("tpu_vm.sh", [*SLICE, RUN[0]], "is no option of this script; what is for the launcher"),
        ("xpk.sh", XPK[:1], "give --cluster, --workload and --zone"),
        ("xpk.sh", [*XPK, "--topology=v5e-16"], "--topology=v5e-16: give KIND:SHAPE"),
        ("xpk.sh", [*XPK, "--topology=v5e:4x4x4"], "--topology=v5e:4x4x4: give KIND:SHAPE"),
        ("xpk.sh", [*XPK, "--topology=v5e:4x4", "--restarts=no"], "--restarts=no: give a number"),
        ("slurm.sh", ["--nodes=2"], "give --nodes=N and --gpus=G"),
        ("slurm.sh", ["--nodes=2", "--gpus=1", "--", RUN[0]], "give --workdir=DIR after --"),
    ],
)
def test_mistakes(script, arguments, message):
    done = launch(script, "--dry-run", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not done.stdout
