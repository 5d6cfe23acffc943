import fsspec
import pytest

from launch.smollm2 import convert
from tests.artefacts import artefact


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """The folder that launch/smollm2.sh makes."""
    folder = tmp_path_factory.mktemp("smollm2")
    convert(artefact("smollm2-gguf"), folder)
    yield folder
    (folder / "model.safetensors").unlink()


@pytest.fixture
def memory():
    """A URL that holds nothing yet."""
    url = "memory://bucket/model"
    yield url
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs.clear()
