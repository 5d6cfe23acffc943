import pytest

from msm_jax.corpus.datasets.dataset import write_dataset
from tests.corpus.datasets.source_files import ABOUT, ROWS, write


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A data set of ROWS."""
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, write(folder / "in.jsonl", ROWS), ABOUT)
    return folder
