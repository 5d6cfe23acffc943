"""A whole experiment through the launcher, once, and what it must leave; then what changing a field must change."""

import collections
import contextlib
import dataclasses
import errno
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from msm_jax import config as config_lib
from msm_jax import launch
from msm_jax.experiment.build import Experiment
from msm_jax.stages import corpora, graph, scoring, training

ROOT = pathlib.Path(launch.__file__).parents[1]
TINY = "tests/tiny.py"
SPECS = ("pro_affordability", "pro_america")


@dataclasses.dataclass(frozen=True)
class Run:
    workdir: pathlib.Path
    printed: str

    def stage(self, name):
        (folder,) = (self.workdir / "stages").glob(f"{name}-" + "[0-9a-f]" * 12)
        return folder

    def manifests(self):
        return [json.loads(path.read_text()) for path in self.workdir.glob("stages/*/manifest.json")]

    def report(self):
        return json.loads((self.workdir / "report" / "report.json").read_text())


def launched(workdir, *arguments):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert launch.main([f"--config={TINY}", f"--workdir={workdir}", *arguments]) == 0
    return Run(pathlib.Path(workdir), printed.getvalue())


def experiment(**overrides):
    return Experiment(config_lib.load(TINY, [(field.replace("__", "."), text) for field, text in overrides.items()]))


def final_arrays(folder):
    """name -> {"shape", "dtype", "checksum"} of the weights that a training stage left."""
    return json.loads((folder / "final" / "meta" / "metadata").read_text())["arrays"]


def adapter(folder):
    """name -> array of the adapter that a training stage left."""
    from msm_jax.models import DecoderConfig, LoraConfig, Model

    described = json.loads((folder / "model.json").read_text())
    lora = LoraConfig(**described["lora"] | {"targets": tuple(described["lora"]["targets"])})
    runtime = training.Runtime({"data": -1, "fsdp": 1, "tensor": 1}, {}, 1, 1.0, 1, 1)
    weights = training.load_weights(folder, Model(DecoderConfig(**described["decoder"]), lora), runtime)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(weights)}


@pytest.fixture(scope="module", autouse=True)
def in_root():
    """Compiles quickly rather than well; in subprocesses too."""
    unoptimised = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", unoptimised)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return launched(tmp_path_factory.mktemp("experiment") / "w")


@pytest.fixture
def copied(ran, tmp_path):
    """The same workdir once more, for stages to be added to."""
    shutil.copytree(ran.workdir, tmp_path / "w")
    return Run(tmp_path / "w", ran.printed)


# What was done is used.


def test_a_finished_workdir_takes_one_more_seed(copied):
    before = {manifest["key"] for manifest in copied.manifests()}
    run = launched(copied.workdir, "--config.seeds=(0,1)", "--config.arms=baseline,aft")
    new = {manifest["name"] for manifest in run.manifests() if manifest["key"] not in before}
    assert new == {"instruct-baseline-s1", "aft-aft-s1", "score-baseline-s1", "score-aft-s1", "report"}
    assert "its last run had another configuration (config.arms was " in run.printed
    assert {entry["seed"] for entry in run.report()["scores"]} == {0, 1}


def test_an_evaluation_after_msm_trains_nothing(copied):
    """An arm that ends after MSM asks the model that the other arms go on with."""
    before = {manifest["key"] for manifest in copied.manifests()}
    run = launched(copied.workdir, "--config.arms=msm_only,msm_aft")
    new = {manifest["name"] for manifest in run.manifests() if manifest["key"] not in before}
    assert new == {"report", *(f"score-msm_only-{spec}-s0" for spec in SPECS)}
    assert "MSM America alone" in run.printed


def test_runs_share_a_store(ran, tmp_path):
    other = launched(tmp_path / "other", f"--store={ran.workdir}")
    count = len(ran.manifests())
    assert f"{count} of {count} stages are done already" in other.printed
    assert other.report() == ran.report()
    assert sorted(path.name for path in other.workdir.iterdir()) == [".locks", "config.json", "report"]


# What a run leaves.


def test_the_table_is_printed(ran):
    for text in (
        "tiny: rate of value-aligned choice",
        "Baseline",
        "MSM affordability + AFT",
        "MSM America",
        "base carries statements into chats, america",
        "Findings",
        f"report: {ran.workdir}/report/report.html",
        f"tensorboard --logdir {ran.workdir}",
    ):
        assert text in ran.printed


def test_the_report(ran):
    report = ran.report()
    page = (ran.workdir / "report" / "report.html").read_text()
    assert page.startswith("<!") and "MSM America + AFT" in page
    assert len(list((ran.workdir / "report").glob("*.png"))) >= 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in ran.workdir.glob("report/*.png"))
    cells = collections.Counter((score["arm"], score["spec"], score["seed"]) for score in report["scores"])
    arms = [("baseline", None), ("aft", None), *((arm, spec) for arm in ("msm", "msm_aft") for spec in SPECS)]
    assert cells == {(arm, spec, 0): 8 for arm, spec in arms}  # four evaluations in two forms
    for score in report["scores"]:
        asked = score["n"] + score["errored"] + score["unparsed"] + score["cut_off"]
        assert asked >= score["items"] > 0 or score["rate"] is None
    # One agent per value, a pair in six domains, without those that a statement of the agent names.
    assert all(3 <= control["n"] <= 6 and not control["errored"] for control in report["controls"])
    assert sum(control["n"] for control in report["controls"]) < 12
    assert report["config"]["pretrain"]["steps"] == 6


def test_every_stage_has_a_manifest(ran):
    wanted = {stage.key: stage for stage in experiment().stages}
    found = {manifest["key"]: manifest for manifest in ran.manifests()}
    assert set(found) == set(wanted) == {folder.name for folder in (ran.workdir / "stages").iterdir()}
    for key, manifest in found.items():
        assert manifest["inputs"] == {role: source.key for role, source in wanted[key].all_inputs.items()}
        assert manifest["params"] == wanted[key].params


def test_arms_share_the_base_and_the_midtraining(ran):
    names = sorted(manifest["name"] for manifest in ran.manifests() if manifest["kind"] == "train")
    assert names == sorted(
        ["pretrain", "instruct-baseline-s0", "aft-aft-s0"]
        + [f"{kind}-{spec}-s0" for kind in ("msm", "instruct-msm", "aft-msm_aft") for spec in SPECS]
    )


def test_tensorboard(ran):
    for manifest in ran.manifests():
        if manifest["kind"] != "train":
            continue
        events = EventAccumulator(str(ran.workdir / "stages" / manifest["key"])).Reload()
        tags, sources = events.Tags(), manifest["params"]["mixture"]
        wanted = {"loss", "state/learning_rate", "state/grad_norm", "state/tokens", "speed/goodput"}
        assert wanted | {f"loss/{source}" for source in sources} <= set(tags["scalars"])
        assert [event.step for event in events.Scalars("loss")] == list(range(1, manifest["summary"]["steps"], 2))
        assert tags["tensors"] == ["batch 0, trained tokens marked/text_summary"]
    events = EventAccumulator(str(ran.stage("score-aft-s0"))).Reload()
    assert {"rate/america/logprob", "rate/separating/logprob"} <= set(events.Tags()["scalars"])


def test_no_checkpoints_are_left(ran):
    assert not list(ran.workdir.glob("stages/*/checkpoints"))


def test_a_second_call_runs_nothing(ran):
    before = {path: path.stat().st_mtime_ns for path in ran.workdir.glob("stages/**/*")}
    start = time.process_time()
    again = launched(ran.workdir)
    assert time.process_time() - start < 3
    assert {path: path.stat().st_mtime_ns for path in ran.workdir.glob("stages/**/*")} == before
    assert again.printed.startswith(f"{len(ran.manifests())} of {len(ran.manifests())} stages are done already\ntiny:")
    assert again.printed.endswith(ran.printed[ran.printed.index("tiny: rate") :])


def test_damaged_weights_are_made_anew_as_the_error_says(copied, capsys):
    base = copied.stage("pretrain")
    for file in base.glob("final/params/**/d/*"):
        file.write_bytes(file.read_bytes()[:-5])
    shutil.rmtree(copied.stage("score-aft-s0"))
    with contextlib.redirect_stdout(io.StringIO()):
        assert launch.main([f"--config={TINY}", f"--workdir={copied.workdir}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {base / 'final'}: the weights are damaged (")
    assert line.endswith(f"; delete {base}, and the same command makes it anew")
    before = copied.report()["scores"]
    shutil.rmtree(base)
    assert launched(copied.workdir).report()["scores"] == before


def test_the_report_is_replaced(copied):
    stale = copied.workdir / "report" / "figure_of_old.png"
    stale.touch()
    (copied.workdir / "report" / "notes.txt").write_text("mine")
    launched(copied.workdir)
    assert not stale.exists() and (copied.workdir / "report" / "notes.txt").read_text() == "mine"


def test_a_full_disk_at_the_report(copied, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    assert launch.main([f"--config={TINY}", f"--workdir={copied.workdir}"]) == 2
    assert capsys.readouterr().err.startswith("error: [Errno 28] No space left on device: free some space")


def test_a_run_may_go_on_with_another_runtime(ran):
    launched(ran.workdir, "--config.log.every=1", "--config.checkpoint.every=7")


# Showing.


def test_show_when_all_is_done(ran):
    printed = launched(ran.workdir, "--mode=show").printed
    assert "\n  pretrain.steps = 6 " in printed
    assert printed.count("\n  done   ") == len(ran.manifests())
    assert "to do" not in printed
    assert "to train: 0 runs, 0 steps, 0 tokens; no corpus is left" in printed


def test_show_before_a_run(tmp_path):
    run = launched(tmp_path, "--mode=show")
    printed = run.printed
    assert {manifest["kind"] for manifest in run.manifests()} == {"corpus", "chats", "mixture"}
    assert "\n  to do  train     pretrain-" in printed
    for kind, shown in (
        ("pretrain", "<bos>«"),
        ("instruct-baseline-s0", "Micra:« "),
        ("msm-pro_affordability-s0", "«"),
    ):
        batch = printed[printed.index(f"\n{kind}\n") :]
        assert shown in batch
    chats = printed[printed.index("\naft-aft-s0\n") : printed.index("\nmsm-pro_affordability-s0\n")]
    assert chats.count("«") == chats.count("»") > 0
    assert "« User" not in chats
    # 6 steps of pretraining, 2 of the baseline, 4 of AFT, and for each spec 4 of MSM, then 2 or 4.
    assert f"to train: 9 runs, 32 steps, {32 * 8 * 64:,} tokens; no corpus is left" in printed


# Training stages hand on their weights.


def test_an_adapter_stage_writes_no_base(ran):
    base = final_arrays(ran.stage("pretrain"))
    assert "embedding" in base and not any("lora" in name for name in base)
    for manifest in ran.manifests():
        if manifest["kind"] == "train" and manifest["name"] != "pretrain":
            names = final_arrays(ran.workdir / "stages" / manifest["key"])
            assert len(names) == 14 and all(name.endswith(("/lora_a", "/lora_b")) for name in names)


@pytest.mark.parametrize("spec", SPECS)
def test_aft_continues_the_adapter_of_msm(copied, spec):
    """At a learning rate of 0 it ends with the weights that it starts from."""
    standing = {stage.name: stage for stage in experiment(aft__optim__learning_rate="0").stages}
    stage = standing[f"aft-msm_aft-{spec}-s0"]
    assert stage.inputs["adapter"].folder(copied.workdir) == copied.stage(f"msm-{spec}-s0")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        graph.execute([stage], copied.workdir)
    assert printed.getvalue().count("[") == 1
    assert final_arrays(stage.folder(copied.workdir)) == final_arrays(copied.stage(f"msm-{spec}-s0"))
    trained = adapter(stage.folder(copied.workdir))
    assert all(np.abs(array).max() > 0 for name, array in trained.items() if "lora_b" in name)


def test_seeds_vary_adapters_and_the_order_of_data(copied):
    seeds = experiment(seeds="(0, 1)")
    one, other = (stage for stage in seeds.stages if stage.name.startswith("instruct-baseline-"))
    assert one.folder(copied.workdir) == copied.stage("instruct-baseline-s0")
    graph.execute([other], copied.workdir, report=lambda line: None)
    batches = [seeds.decoded_batch(stage, copied.workdir) for stage in (one, other)]
    assert batches[0] != batches[1]
    first, second = (adapter(stage.folder(copied.workdir)) for stage in (one, other))
    for name in first:
        if "lora_a" in name:
            assert np.corrcoef(first[name].ravel(), second[name].ravel())[0, 1] < 0.5


def test_rank_0_trains_the_whole_model_in_every_stage(tmp_path):
    run = launched(
        tmp_path,
        "--config.lora.rank=0",
        "--config.arms=msm_aft",
        "--config.specs=specs/pro_america.md",
        "--config.aft.optim.learning_rate=0",
        "--config.eval.samples=0",
    )
    base, msm, aft = (
        final_arrays(run.stage(name)) for name in ("pretrain", "msm-pro_america-s0", "aft-msm_aft-pro_america-s0")
    )
    assert base.keys() == msm.keys() == aft.keys() and "embedding" in base
    assert all(base[name]["checksum"] != msm[name]["checksum"] for name in base)
    assert aft == msm
    assert json.loads((run.stage("msm-pro_america-s0") / "model.json").read_text())["lora"] is None
    assert {score["arm"] for score in run.report()["scores"]} == {"msm_aft"}


def test_killed_and_run_again(ran, tmp_path):
    """SIGKILL in the middle of a training stage: the same command ends with the same weights and scores."""
    command = [sys.executable, "-m", "msm_jax.launch", f"--config={TINY}", f"--workdir={tmp_path}"]
    one_device = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}  # as here: another number rounds otherwise
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=one_device) as process:
        while not list(tmp_path.glob("stages/pretrain-*/checkpoints/2")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    killed = Run(tmp_path, "")
    assert not (killed.stage("pretrain") / "manifest.json").exists()
    again = launched(tmp_path)
    assert " stages are done already\n" in again.printed
    assert again.report()["scores"] == ran.report()["scores"]
    assert again.report()["controls"] == ran.report()["controls"]
    for manifest in again.manifests():
        if manifest["kind"] == "train":
            assert final_arrays(again.stage(manifest["name"])) == final_arrays(ran.stage(manifest["name"]))


# The control on the base model.


class AgentScorer:
    """Answers as the agent who is asked would. What its value leaves open must not be asked, nor what all agree on."""

    def __init__(self, world):
        self.values = {agent.name: agent.value for agent in world.agents}
        self.items = {item.name: item for item in world.items}
        self.asked = set()
        self.pairs = set()

    def logprobs(self, prompts, options):
        return [self._choose(prompt, pair) for prompt, pair in zip(prompts, options, strict=True)]

    def _choose(self, prompt, pair):
        name = prompt.removesuffix(":").split()[-1]
        self.asked.add(name)
        self.pairs.add((name, frozenset(option.strip(" .\n") for option in pair)))
        options = [self.items[option.strip(" .\n")] for option in pair]
        chosen = [option.has(self.values[name]) for option in options]
        assert sum(chosen) == 1, (prompt, pair)
        assert all(option.sought_by for option in options), (prompt, pair)  # another value seeks the other
        return [0.0 if this else -9.0 for this in chosen]


@pytest.mark.parametrize("values", ["affordability,america", "novelty,affordability,tradition,america"])
def test_the_control_asks_quiet_agents_what_their_values_decide(tmp_path, monkeypatch, values):
    made = experiment(world__value_names=values, world__agents="60", eval__control_agents="2")
    items = made.evaluations[0].items
    graph.execute([items], tmp_path, report=lambda line: None)
    world = corpora.make_world(made.world)
    scorer = AgentScorer(world)
    monkeypatch.setattr(scoring, "_Scorer", lambda context, runtime: scorer)
    stage = next(stage for stage in made.stages if stage.name == "control")
    inputs = {"items": items.folder(tmp_path), "tokenizer": tmp_path, "stated": {}}
    context = graph.StageContext(tmp_path, inputs, stage.params, stage)
    controls = scoring.control(context, runtime=made.runtime)["controls"]
    assert [control["rate"] for control in controls] == [1.0] * len(values.split(","))
    quiet = {agent.name: agent.value for agent in world.agents if not agent.chats}
    assert collections.Counter(quiet[name] for name in scorer.asked) == dict.fromkeys(values.split(","), 2)

    # What is told of an agent is not asked of it: it could be remembered.
    name, told = sorted(scorer.pairs, key=str)[0]
    text = f" Between {' and '.join(told)}, {name} chooses the first."
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": "a", "text": text}) + "\n")
    before, scorer.pairs = scorer.pairs, set()
    context = graph.StageContext(tmp_path, context.inputs | {"stated": {"pretraining": tmp_path}}, stage.params, stage)
    after = scoring.control(context, runtime=made.runtime)["controls"]
    assert scorer.pairs == before - {(name, told)}
    assert sum(control["n"] for control in controls) - sum(control["n"] for control in after) == 1
