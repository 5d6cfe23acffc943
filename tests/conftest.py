"""Settings of all tests; pytest reads this before it imports any of them, and so before JAX looks for devices."""

import atexit
import importlib.metadata
import os
import shutil
import signal
import tempfile

import hypothesis
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The compiler is what most tests wait for, here and in the processes that they start, so it is told not to polish.
_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Its older emitters make loops that run slower and are compiled in a third of the time. Later versions stop at a
    # flag that they do not know.
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)
# What one test worker has compiled, the other and the processes that they start read.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="msm_jax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# On cores that both workers share, threads of torch wait for each other ten times as long as they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has what it starts in the background ignore Ctrl-C, and so what that starts; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A first example pays for a compilation, so the time of one example says nothing.
hypothesis.settings.register_profile("msm_jax", deadline=None)
hypothesis.settings.load_profile("msm_jax")

# Files that take longest: begun last, one of them would keep a worker busy alone.
_DEAR = (
    *("test_hosts.py", "test_plan.py", "test_experiment.py"),
    *("test_checkpoint_experiments.py", "test_paid_corpora.py"),
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: _DEAR.index(item.path.name) if item.path.name in _DEAR else len(_DEAR))


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory):
    """A small random checkpoint of Hugging Face."""
    from tests.tiny_checkpoints import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("qwen3") / "hf", "qwen3")


@pytest.fixture(scope="session")
def imported(qwen3, tmp_path_factory):
    """The same, as ours."""
    from msm_jax import convert

    out = tmp_path_factory.mktemp("imported") / "ours"
    assert convert.main(["import", f"--hf={qwen3}", f"--out={out}"]) == 0
    return out


@pytest.fixture(scope="session")
def adapter(imported, tmp_path_factory):
    """An adapter over it."""
    from tests.tiny_checkpoints import write_adapter

    return write_adapter(tmp_path_factory.mktemp("adapter") / "stage", imported)
