"""The table of tests/hostile.py."""

import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Case:
    """One row. In `line`, `arguments`, `shell` and `absent`, {w} is the workdir and {tmp} the folder that it lies in.

    Attributes:
        line: the last one that is written to standard error, after "error: " if status is 2; to standard output, if
            it is 0.
        arguments: of the command, beside --config=tests/tiny.py and --workdir={w}, which they may replace.
        damage: what happens before to the workdir, a copy of one that is done.
        files: name -> text, written beside the workdir.
        shell: how the command is called, where it needs a process of its own.
        real: whether it needs one for another reason: a workdir that was trained, and not only looks it.
        absent: what must not be there afterwards.
    """

    name: str
    line: str
    arguments: str = ""
    damage: Callable[[pathlib.Path], None] = lambda workdir: None
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = "launch"
    shell: str = ""
    real: bool = False
    status: int = 2
    absent: str = ""

    @property
    def alone(self) -> bool:
        return bool(self.shell) or self.real


# Damage to a workdir. Patterns are of paths in it.


def put(pattern: str, content: bytes | None = None, folder: bool = False):
    """Replaces what is at `pattern`: by bytes, by nothing, by a folder."""

    def damage(workdir: pathlib.Path) -> None:
        paths = list(workdir.glob(pattern)) if "*" in pattern else [workdir / pattern]
        assert paths, pattern
        for path in paths:
            if path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if folder:
                path.mkdir(parents=True)
            elif content is not None:
                path.write_bytes(content)

    return damage


def pipe(pattern: str):
    """A named pipe, which nobody writes to, in place of a file."""

    def damage(workdir: pathlib.Path) -> None:
        (path,) = workdir.glob(pattern)
        path.unlink()
        os.mkfifo(path)

    return damage


def lock_folders(pattern: str):
    """Folders in place of the locks of stages."""

    def damage(workdir: pathlib.Path) -> None:
        for path in (workdir / ".locks").glob(pattern):
            path.unlink()
            path.mkdir()

    return damage


def edit(pattern: str, **fields):
    """Sets fields of a JSON file; None: removes them."""

    def damage(workdir: pathlib.Path) -> None:
        (path,) = workdir.glob(pattern)
        value = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({key: field for key, field in value.items() if field is not None}))

    return damage


def all_of(*damages):
    def damage(workdir: pathlib.Path) -> None:
        for one in damages:
            one(workdir)

    return damage


def to_do(*names: str):
    """Stages that are not done."""
    return all_of(*(put(f"stages/{name}-*/manifest.json") for name in names))


NEW = put("../w")  # a workdir that is not there yet


def link(target: str):
    def damage(workdir: pathlib.Path) -> None:
        shutil.rmtree(workdir)
        workdir.symlink_to(target)

    return damage


def config(body: str) -> Mapping[str, str]:
    """A file of a configuration that is tests/tiny.py after `body`, in which any field may be set or deleted."""
    lines = f"    config = tiny.get_config()\n    with config.unlocked():\n        {body}\n    return config\n"
    return {"c.py": f"from tests import tiny\n\n\ndef get_config():\n{lines}"}


SHOW, OWN = "--mode=show", "--config={tmp}/c.py"
WITHOUT_TORCH = {"torch/__init__.py": 'raise ModuleNotFoundError("no torch", name="torch")\n'}
_MANIFEST = "{w}/stages/corpus-aft-*/manifest.json"
_AGAIN = "; delete it, and the same command does what is left of this stage"
_ANEW = "; delete {w}/stages/*, and the same command makes it anew"
_MODEL = "stages/pretrain-*/model.json"
_LACKS = "the configuration lacks the field {}; begin it with configs/common.py, which has all"
_MEND = "; mend the variable, or unset it"


def _manifests():
    path = "stages/corpus-aft-*/manifest.json"
    for what, damage, told in (
        (
            "is binary",
            put(path, b"\x80\x02\xff"),
            ": not JSON but bytes that are no text",
        ),
        ("is empty", put(path, b""), ":1: not JSON (Expecting value)"),
        ("is cut off", put(path, b'{"key": "co'), ":1: not JSON (*)"),
        ("is a list", put(path, b"[]"), ": not a JSON object but a list"),
        ("is null", put(path, b"null"), ": not a JSON object but null"),
        ("is deep", put(path, b"[" * 99_999), ": not JSON that can be read (*)"),
        ("is a folder", put(path, folder=True), ": cannot be read (Is a directory)"),
        ("is a named pipe", pipe(path), ": not a file but a named pipe"),
        ("lacks key", edit(path, key=None), ": has no key"),
        ("lacks seconds", edit(path, seconds=None), ": has no seconds"),
        ("lacks summary", edit(path, summary=None), ": has no summary"),
        ("has a list for summary", edit(path, summary=[]), ": its summary is a list"),
        ("has a word for seconds", edit(path, seconds="1"), ": its seconds is a text"),
    ):
        yield Case(f"a manifest {what}", f"{_MANIFEST}{told}{_AGAIN}", SHOW, damage)


def _workdirs():
    for name, path, told in (
        ("in a link loop", "{tmp}/loop/w", ": no folder can be made there (Too many levels of symbolic links)"),
        ("that is a link loop", "{tmp}/loop", ": is a link that leads to no folder"),
        ("with a long name", f"{{tmp}}/{'n' * 300}", ": no folder can be made there (File name too long)"),
        ("with a long path", "{tmp}" + "/folder" * 700, ": no folder can be made there (File name too long)"),
        ("in /proc", "/proc/w", ": no folder can be made there (*)"),
        ("in a device", "/dev/null/w", ": is a file, or lies in one"),
        ("that is a file", "{tmp}/c.py", ": is a file, or lies in one"),
    ):

        def loop(workdir: pathlib.Path) -> None:
            workdir.with_name("loop").symlink_to(workdir.with_name("loop"))

        for mode in (SHOW, ""):
            line = f"{path}{told}; choose another --workdir"
            yield Case(f"a workdir {name} {mode}", line, f"{mode} --workdir={path}", loop, {"c.py": ""})


def _aliases():
    stages = ("aft", "msm", "pretrain")
    for field, meant in (
        ("aft.optim.lr", "aft.optim.learning_rate"),
        ("aft.lr", "aft.optim.learning_rate"),
        ("LR", " or ".join(f"{stage}.optim.learning_rate" for stage in stages)),
        ("lr", " or ".join(f"{stage}.optim.learning_rate" for stage in stages)),
        ("msm.optim.wd", "msm.optim.weight_decay"),
        ("msm.bs", "msm.batch_size"),
        ("msm.bsz", "msm.batch_size"),
        ("batch_size", " or ".join(f"{stage}.batch_size" for stage in stages)),
        ("aft.per_device_train_batch_size", "aft.batch_size"),
        ("aft.epochs", "aft.steps"),
        ("num_train_epochs", " or ".join(f"{stage}.steps" for stage in stages)),
        ("max_len", "row_length"),
        ("max_seq_length", "row_length"),
        ("aft.optim.warmup", "aft.optim.warmup_fraction"),
        ("aft.optim.max_grad_norm", "aft.optim.clip_norm"),
        ("msm.gradient_accumulation_steps", "msm.accumulation"),
        ("lora.r", "lora.rank"),
        ("lora_alpha", "lora.alpha"),
        ("hidden_size", "model.width"),
        ("num_hidden_layers", "model.num_layers"),
        ("gradient_checkpointing", "execution.remat"),
        ("checkpoint.save_steps", "checkpoint.every"),
        ("seed", "seeds"),
    ):
        line = f"config has no field {field}; did you mean {meant}?"
        yield Case(f"alias {field}", line, f"--config.{field}=1 {SHOW}")
    line = "{tmp}/c.py:8: config has no field lr; did you mean learning_rate?"
    body = "pass\n    config.aft.optim.lr = 1"
    yield Case("alias lr in a file", line, OWN, files=config(body))


def _stops():
    """Signals while a stage trains, after its first checkpoint; what a store of calls and launch scripts answer."""
    many = 100_000
    training = f"--config.pretrain.steps={many} --config.checkpoint.every=1"
    # $$ is the shell, and then the command, which takes its place.
    wait = "until ls {{w}}/stages/pretrain-*/checkpoints/[0-9]*; do kill -0 $$ || exit; sleep 0.1; done"
    when = f"( {wait}; {{}} ) >/dev/null 2>&1 & exec {{{{command}}}}"
    saved = f"* of {many} steps are done and saved, and step * is next; the same command resumes"
    for name, kills, line, status in (
        ("Ctrl-C", "kill -INT $$", f"stopped: pretrain: Ctrl-C; {saved}", 130),
        ("SIGTERM", "kill -TERM $$", f"stopped: pretrain: SIGTERM; {saved}", 143),
        (
            "Ctrl-C twice",
            "while kill -INT $$; do sleep 0.01; done",
            "stopping: this step is finished and saved; Ctrl-C once more drops it",
            -signal.SIGINT,
        ),
    ):
        yield Case(f"{name} in training", line, training, NEW, shell=when.format(kills), status=status)
    for store in ("gs://bucket/calls.sqlite", "s3://bucket/calls.sqlite"):
        line = f"config.calls.store={store}: name a local file; a workdir on gs:// keeps a copy of it"
        yield Case(f"a store at {store}", line, f"--config=configs/corpus.py {SHOW} --config.calls.store={store}")
    # `env -i`: without the keys of who runs this.
    clean = 'env -i PATH="$PATH" HOME={tmp} OTHER_API_KEY=k HF_TOKEN=k bash launch/'
    rest = " --zone=z --topology=v5e:4x4 --dry-run -- --config=tests/tiny.py --workdir=gs://b/w 2>&1 >/dev/null"
    for name, script, left in (
        ("a slice", "tpu_vm.sh --name=n", "OTHER_API_KEY"),
        ("a cluster", "xpk.sh --cluster=c --workload=n", "HF_TOKEN, OTHER_API_KEY"),
    ):
        line = f"note: these are set here, and the workers will not have them: {left}"
        yield Case(f"keys that do not reach {name}", line, shell=clean + script + rest, status=0)


def _absurd():
    for field, value, most in (
        ("row_length", 10**9, "262,144"),
        ("pretrain.steps", 10**15, "1,000,000"),
        ("aft.steps", 10**9, "1,000,000"),
        ("msm.batch_size", 10**9, "65,536"),
        ("model.width", 10**9, "262,144"),
        ("model.num_layers", 10**6, "4,096"),
        ("lora.rank", 10**8, "65,536"),
        ("eval.samples", 10**9, "65,536"),
        ("tokenizer.vocab_size", 10**12, "1,000,000"),
    ):
        line = f"config.{field} is {value}; it must be at most {most}"
        yield Case(f"absurd {field}", line, f"--config.{field}={value}")
    line = "config.corpus.pretraining is 1000000000000; ask for at most 99,999,999"
    yield Case("absurd corpus", line, "--config.corpus.pretraining=1000000000000")
    line = "config.corpus.msm is 9999999999; ask for at most 99,999,999"
    yield Case("absurd written corpus", line, f"--config=configs/corpus.py --config.corpus.msm=9999999999 {SHOW}")
    line = "config.corpus.msm expects int, as in 5300; '²' is given; name data that exist in config.data.msm"
    yield Case("digits of no number", line, f"--config=configs/llama8b_cheese.py --config.corpus.msm=² {SHOW}")
    line = "config.seeds has 5,000 seeds; give at most 1,000"
    yield Case("absurd seeds", line, OWN, files=config("config.seeds = tuple(range(5000))"))


def _configs():
    for name, text, line in (
        ("returns an object", "def get_config(): return object()", ": get_config returned object, not an ml_*"),
        (
            "has no function",
            "get_config = 3",
            ": has no get_config(); a config file defines it and returns a ConfigDict",
        ),
        (
            "is frozen",
            "from ml_collections import FrozenConfigDict\ndef get_config(): return FrozenConfigDict({'name': 'n'})",
            ": get_config returned FrozenConfigDict, not an ml_*",
        ),
        ("exits", "def get_config(): raise SystemExit(3)", ":1: SystemExit: 3"),
        ("takes another's function", "from json import loads as get_config", ": get_config needs a variant: *"),
        ("fails in another file", "from json import JSONDecoder\nget_config = JSONDecoder().decode", ": get_config *"),
        ("has a null byte", "x = '\0'", ": source code string cannot contain null bytes"),
        ("is not indented", "def get_config():\nreturn 1", ":2: expected an indented block*"),
    ):
        yield Case(f"a config {name}", f"{{tmp}}/c.py{line}", OWN, files={"c.py": text})
    for name, body, line in (
        ("lacks mesh", "del config.mesh", _LACKS.format("mesh.data")),
        ("lacks eval", "del config.eval", _LACKS.format("eval.pairs")),
        ("lacks a number", "del config.msm.optim.beta1", _LACKS.format("msm.optim.beta1")),
        ("lacks lora", "del config.lora", _LACKS.format("lora.rank")),
        ("lacks chat", "del config.chat", _LACKS.format("chat.system")),
        ("holds an object", "config.extra = object()", "{tmp}/c.py: config.extra is object <object *; a field *"),
        ("holds a set", "config.extra = {1, 2}", "{tmp}/c.py: config.extra is set {{1, 2}}; a field holds text *"),
        ("adds a field", "config.model.hidden = 3", "config has no field model.hidden; did you mean model.width?"),
        (
            "adds a rate",
            "config.aft.optim.lr = 3",
            "config has no field aft.optim.lr; did you mean aft.optim.learning_rate?",
        ),
        ("has a text for a number", "del config.row_length; config.row_length = '64'", "config.row_length is '64'; *"),
        ("has texts for seeds", "config.seeds = ('a',)", "config.seeds is ('a',); it must be a tuple of whole numbers"),
        ("has a number for specs", "del config.specs; config.specs = 3", "config.specs is 3; it must be a *"),
        ("has a text for rows", "config.corpus = dict(config.corpus, aft='3')", "config.corpus.aft is 3; ask for at *"),
        ("has a text for a share", "config.aft.mixture = {'aft': '1', 'instruction': 1.0}", "config.aft.mixture.*"),
        (
            "has a number for corpus",
            "del config.corpus; config.corpus = 3",
            "config.corpus is 3; it must be a group of fields",
        ),
        (
            "has a text for chat",
            "del config.chat; config.chat = 'x'",
            "config.chat is 'x'; it must be a group of fields",
        ),
        ("has a text for a seed", "del config.base_seed; config.base_seed = '0'", "config.base_seed is '0'; it must *"),
        ("has a number for a switch", "del config.int8_base; config.int8_base = 3", "config.int8_base is 3; it must *"),
        (
            "has a name with a null byte",
            "config.name = 'a\\0b'",
            "{tmp}/c.py: config.name is str 'a\\x00b'; a field holds *",
        ),
    ):
        yield Case(f"a config {name}", line, OWN, files=config(body))


def _environment():
    for setting, line in (
        ("JAX_PLATFORMS=junk", f"JAX_PLATFORMS=junk: no such devices here (*'junk'*){_MEND}"),
        ("JAX_PLATFORMS=tpu", f"JAX_PLATFORMS=tpu: no such devices here (*){_MEND}"),
        ("JAX_PLATFORMS=rocm", f"JAX_PLATFORMS=rocm: no such devices here (*){_MEND}"),
        ("JAX_NUM_CPU_DEVICES=0", f"JAX_NUM_CPU_DEVICES=0: no such devices here (*){_MEND}"),
        ("JAX_NUM_CPU_DEVICES=1000000", "JAX_NUM_CPU_DEVICES: 1000000 devices on one CPU; give at most 1024"),
        ("JAX_NUM_CPU_DEVICES=abc", '*"abc"* jax_num_cpu_devices; mend that variable of the environment, or unset it'),
        ("JAX_ENABLE_X64=maybe", "*'maybe'*'JAX_ENABLE_X64'; mend that variable of the environment, or unset it"),
        ("XLA_FLAGS=--xla_junk=1", f"XLA_FLAGS=--xla_junk=1: Unknown flag*--xla_junk=1{_MEND}"),
        ("XLA_FLAGS=junk", f'XLA_FLAGS=junk: Could not open file "junk"*{_MEND}'),
        ("XLA_FLAGS=--xla_force_host_platform_device_count=x", f"XLA_FLAGS=--xla_*: *interpret value x*{_MEND}"),
    ):
        yield Case(setting, line, damage=to_do("pretrain"), shell=f"{setting} {{command}}")
    junk = "JAX_PLATFORMS=junk"
    line = f"{junk}: no such devices here (*'junk'*){_MEND}"
    yield Case(
        f"{junk} in an evaluation", line, damage=put("stages/score-aft-*"), shell=f"{junk} {{command}}", real=True
    )
    stage = "export --checkpoint={w}/stages/pretrain-* --out={tmp}/out"
    mend = "mend that variable of the environment, or unset it"
    for setting, told in (
        (junk, line),
        ("JAX_NUM_CPU_DEVICES=abc", f'*"abc"* jax_num_cpu_devices; {mend}'),
        ("JAX_ENABLE_X64=maybe", f"*'maybe'*'JAX_ENABLE_X64'; {mend}"),
    ):
        of = {"command": "convert", "shell": f"{setting} {{command}}", "real": True, "absent": "{tmp}/out"}
        yield Case(f"{setting} in an export", told, stage, **of)
    for setting in (
        "LC_ALL=C PYTHONUTF8=0",
        "PYTHONIOENCODING=ascii",
        "LC_ALL=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0",
    ):
        yield Case(f"{setting} {SHOW}", "to train: *", SHOW, shell=f"{setting} {{command}}", status=0)
    line = "curves: * --logdir {w}"
    yield Case("MPLBACKEND=junk", line, damage=to_do("report"), shell="MPLBACKEND=junk {command}", real=True, status=0)
    yield Case(
        "LC_ALL=C at the report",
        line,
        damage=to_do("report", "rows-aft"),
        shell="LC_ALL=C PYTHONUTF8=0 {command}",
        real=True,
        status=0,
    )


def fields():
    """The table of fields, which tests/test_bad_input.py runs in one process."""
    from tests.test_bad_input import FIELDS

    for override, line in FIELDS:
        line, argument = (text.replace("{", "{{").replace("}", "}}") for text in (line, f"--config.{override}"))
        yield Case(f"field {override}", f"{line}*", shlex.quote(argument), put("stages"), real=True)


CASES = [
    # Files of a workdir.
    *_manifests(),
    *(
        Case(
            f"model.json {what}",
            f"{{w}}/stages/pretrain-*/model.json{told}{_ANEW}",
            damage=all_of(put(_MODEL, content), put("stages/msm-pro_america-*")),
        )
        for what, content, told in (
            ("is {}", b"{}", ": not the description of a model"),
            ("is binary", b"\x80\x02\xff", ": not JSON but bytes that are no text"),
            ("is a list", b"[]", ": not a JSON object but a list"),
            ("has a number for a model", b'{"decoder": 3, "lora": null}', ": not the description of a model"),
            ("has an odd field", b'{"decoder": {"colour": 3}, "lora": null}', ": not the description of a model"),
            ("is gone", None, ": is gone, though its stage is done"),
        )
    ),
    *(
        Case(
            f"{what} is gone under its manifest",
            f"{{w}}/stages/{path}: is gone, though its stage is done{_ANEW}",
            SHOW,
            all_of(put(f"stages/{path}"), put("stages/rows-aft-*")),
        )
        for what, path in (("a corpus", "corpus-aft-*/corpus.jsonl"), ("a folder", "corpus-aft-*/corpus.jsonl"))
    ),
    Case(
        "rows.json is gone",
        f"{{w}}/stages/rows-aft-*/rows.json: no such file{_ANEW}",
        SHOW,
        put("stages/rows-aft-*/rows.json"),
    ),
    Case(
        "rows.json is {}",
        f"{{w}}/stages/rows-aft-*/rows.json: has no fingerprint{_ANEW}",
        SHOW,
        put("stages/rows-aft-*/rows.json", b"{}"),
    ),
    Case(
        "rows are cut off",
        "{w}/stages/rows-aft-*: the packed rows are damaged (*); delete the folder",
        SHOW,
        put("stages/rows-aft-*/tokens.npy", b"\x93NUMPY\1\0"),
    ),
    Case(
        "a tokenizer is gone",
        f"{{w}}/stages/tokenizer-*: neither tokenizer.json nor tokenizer.model *{_ANEW}",
        SHOW,
        all_of(put("stages/tokenizer-*/tokenizer.model"), put("stages/rows-aft-*")),
    ),
    Case(
        "report.json is gone",
        f"{{w}}/stages/report-*/report.json: no such file{_ANEW}",
        damage=put("stages/report-*/report.json"),
    ),
    Case(
        "report.json is a list",
        f"{{w}}/stages/report-*/report.json: not a JSON object but a list{_ANEW}",
        damage=put("stages/report-*/report.json", b"[]"),
    ),
    Case(
        "curves are empty under finished weights",
        f"{{w}}/stages/pretrain-*/metrics.jsonl:1: not JSON (*){_ANEW}",
        damage=all_of(to_do("pretrain"), put("stages/pretrain-*/metrics.jsonl", b"")),
        real=True,
    ),
    Case(
        "weights are gone",
        "{w}/stages/pretrain-*/final: no such folder of weights; delete {w}/stages/pretrain-*, *",
        damage=all_of(put("stages/pretrain-*/final"), put("stages/msm-pro_america-*")),
        real=True,
    ),
    Case(
        "a summary is empty",
        f"{{w}}/stages/*/manifest.json: its summary has no *{_AGAIN}",
        damage=all_of(edit("stages/rows-aft-*/manifest.json", summary={}), to_do("report")),
    ),
    *(
        Case(
            f"a corpus {what}",
            f"{{w}}/stages/corpus-aft-*/corpus.jsonl{told}; *or delete {{w}}/stages/corpus-aft-*, and the same command "
            "makes it anew",
            SHOW,
            all_of(put("stages/corpus-aft-*/corpus.jsonl", content), put("stages/rows-aft-*")),
        )
        for what, content, told in (
            ("is binary", b"\xff\xfe\0", ":1: not UTF-8 (byte 1)"),
            ("is empty", b"", ": holds no chats"),
            ("is a list", b"[]", ":1: not a JSON object but a list"),
            ("has rows of another kind", b'{"text": "t"}', ":1: *"),
        )
    ),
    # Time that is not lost.
    *_stops(),
    # Folders.
    Case(
        "stages is a file",
        "{w}/stages/*: is a file, or lies in one; delete what is in the way, or *",
        SHOW,
        put("stages", b""),
    ),
    Case(
        "a stage is a file",
        "{w}/stages/rows-aft-*: is a file, or lies in one; delete what is in the way, or *",
        SHOW,
        put("stages/rows-aft-*", b""),
    ),
    Case(
        "report is a file",
        "{w}/report: is a file, or lies in one; delete what is in the way, or *",
        damage=put("report", b""),
        real=True,
    ),
    Case(
        "the lock is a folder",
        "[Errno 21] Is a directory: '{w}/.locks/rows-aft-*': delete what is in the way, or *",
        SHOW,
        all_of(put("stages/rows-aft-*"), lock_folders("rows-aft-*")),
    ),
    *_workdirs(),
    Case(
        "a workdir that is a link to nothing",
        "{w}: is a link that leads to no folder; choose another --workdir",
        SHOW,
        link("nowhere"),
    ),
    Case(
        "a limit on files",
        "file too large while writing {w}/stages/*: raise the limit on the size of a file *",
        SHOW,
        put("stages"),
        shell="ulimit -f 12; {command}",
    ),
    Case(
        "a limit on files in training",
        "file too large while writing {w}/stages/pretrain-*: raise the limit on *",
        damage=put("stages/pretrain-*"),
        shell="ulimit -f 40; {command}",
        real=True,
    ),
    Case(
        "output to a full disk",
        "[Errno 28] No space left on device: free some space; the same command then resumes",
        SHOW,
        shell="{command} >/dev/full",
    ),
    Case("a workdir whose name is no UTF-8", "to train: *", f"{SHOW} --workdir={{tmp}}/\udcff", status=0),
    Case("no output", "", SHOW, shell="{command} >&-", status=0),
    Case("no output at all", "", SHOW, shell="{command} >&- 2>&-", status=0),
    # Settings.
    *_aliases(),
    *_absurd(),
    *_configs(),
    Case(
        "no variant after the colon",
        "--config=tests/tiny.py:: names no variant after the colon; leave it out, or *",
        "--config=tests/tiny.py:",
    ),
    Case(
        "bytes that are no UTF-8",
        "tests/tiny.py: config.assistant.provider is str *; a field holds text in UTF-8, *",
        "--config.assistant.provider=\udcff",
    ),
    Case(
        "a long name",
        "runs/n*: no folder can be made there (File name too long); choose another --workdir",
        f"--workdir= --config.name={'n' * 300}",
    ),
    Case("a name that leads elsewhere", "config.name is '..': it names the folder *", "--workdir= --config.name=.."),
    Case(
        "a typo of a folder",
        "./models/typo: no such folder (*",
        f"--config=configs/smollm_cheese.py {SHOW} --config.base.path=./models/typo",
        NEW,
    ),
    Case(
        "a vocabulary that is too small",
        "tokenizer: vocab_size 270 is too small; *",
        f"{SHOW} --config.tokenizer.vocab_size=270",
        NEW,
    ),
    Case(
        "a line of 60 MB",
        "{w}/stages/corpus-pretraining-*/corpus.jsonl:1: longer than 8 MiB; split it into rows, *",
        SHOW,
        all_of(
            put("stages/corpus-pretraining-*/corpus.jsonl", b'{"text": "' + b"word " * 12_000_000 + b'"}\n'),
            put("stages/rows-pretraining-*"),
        ),
    ),
    *_environment(),
    # Work that cannot end is not begun.
    Case(
        "export --merge --verify without torch",
        "--verify compares with transformers and peft, and torch is *",
        "export --checkpoint={w}/stages/pretrain-x --out={tmp}/out --merge --verify",
        files=WITHOUT_TORCH,
        command="convert",
        shell="PYTHONPATH={tmp}:$PYTHONPATH {command}",
        absent="{tmp}/out",
    ),
    Case(
        "import --verify without torch",
        "--verify compares with transformers and peft, and torch is *",
        "import --hf={w} --out={tmp}/out --verify",
        files=WITHOUT_TORCH,
        command="convert",
        shell="PYTHONPATH={tmp}:$PYTHONPATH {command}",
        absent="{tmp}/out",
    ),
    Case(
        "export to what is not empty",
        "--out={w}: is not empty; choose another folder, or delete this one",
        "export --checkpoint={w}/stages/pretrain-x --out={w}",
        command="convert",
    ),
    Case(
        "export to a file",
        "{tmp}/c.py: is a file, or lies in one; choose another --out",
        "export --checkpoint={w}/stages/pretrain-x --out={tmp}/c.py",
        files={"c.py": ""},
        command="convert",
    ),
    Case(
        "export of a broken stage",
        f"{{w}}/stages/pretrain-*/model.json: not the description of a model{_ANEW}",
        "export --checkpoint={w}/stages/pretrain-* --out={tmp}/out",
        put(_MODEL, b"{}"),
        command="convert",
        absent="{tmp}/out",
    ),
    Case(
        "export of what is not there",
        "{w}/nothing: no such folder *",
        "export --checkpoint={w}/nothing --out={tmp}/out",
        command="convert",
        absent="{tmp}/out",
    ),
    Case(
        "import of a workdir",
        "{w}/config.json: model_type is None; *",
        "import --hf={w} --out={tmp}/out",
        command="convert",
        absent="{tmp}/out",
    ),
]
