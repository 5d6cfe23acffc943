"""What the first of several processes writes, in stages that run on all of them."""

import os
import pathlib
import types

import jax
import pytest

from msm_jax import config as config_lib
from msm_jax import launch
from msm_jax.experiment.build import Experiment
from msm_jax.stages import graph, scoring, training

ROOT = pathlib.Path(launch.__file__).parents[1]


@pytest.fixture(params=[0, 1])
def process(request):
    return request.param


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    """The stage, and the folders of its inputs."""
    workdir = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        experiment = Experiment(config_lib.load("tests/tiny.py", []))
    [stage] = [stage for stage in experiment.stages if stage.name == "pretrain"]
    graph.execute(list(stage.all_inputs.values()), workdir)
    return stage, stage.folders(workdir)


def test_a_model_is_described_and_sent_before_its_weights_appear(pretraining, process, tmp_path, monkeypatch):
    from msm_jax.checkpoints import orbax
    from msm_jax.train import loop, step

    stage, inputs = pretraining
    events = []

    def note(name):
        events.append((name, os.listdir(tmp_path)))

    def train(**_):
        monkeypatch.setattr(jax, "process_index", lambda: process)
        return types.SimpleNamespace(params={})

    monkeypatch.setattr(step, "init_state", lambda *_: None)
    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(orbax, "save_params", lambda folder, _: note(folder))
    context = graph.StageContext(tmp_path, inputs, stage.params, stage, arrays="gs://a/b", send=lambda: note("sent"))
    runtime = stage.run.keywords["runtime"]
    training._train(context, runtime, "pretrain", training.sources_of(stage.params, inputs), 2)
    written = ["model.json"] if process == 0 else []
    assert events == [("sent", written), ("gs://a/b/final", written)]


def test_all_processes_ask_and_the_first_writes_the_answers(process, tmp_path, monkeypatch):
    from msm_jax.eval import value_generalisation

    asked = []
    row = {"kind": "own", "value": "red", "form": "pairs", "score": 1.0, "error": False}
    monkeypatch.setattr(value_generalisation, "read_items", lambda path: [])
    monkeypatch.setattr(value_generalisation, "evaluate", lambda *_, **__: asked.append(1) or [row])
    monkeypatch.setattr(value_generalisation, "summarise", lambda rows: {"pairs": {"rate": 1.0}})
    monkeypatch.setattr(scoring, "_ask", lambda context, who: (None, "end"))
    monkeypatch.setattr(scoring, "_Scorer", lambda context, runtime: None)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    params = dict.fromkeys(("model_name", "pairs", "samples", "temperature", "seed", "max_tokens"))
    stage = graph.Stage(graph.Kind.SCORE, "score", params, {}, scoring.score)
    scoring.score(graph.StageContext(tmp_path, {"items": tmp_path}, params, stage), runtime=None)
    assert asked == [1]
    kinds = sorted({name.split(".")[0] for name in os.listdir(tmp_path)})
    assert kinds == (["answers", "events"] if process == 0 else [])
