import pytest

from tests.artefacts import artefact


@pytest.fixture(scope="session")
def upstream(tmp_path_factory):
    """The folder of upstream's evaluation, found as if inspect-evals were installed. Skips without an index."""
    found = artefact("inspect-evals")
    place = tmp_path_factory.mktemp("site")
    # Without what says that it is installed: Inspect would import all of it.
    (place / "inspect_evals").symlink_to(found.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        yield found
