import shutil

import pytest
from small_run import TRAIN, quiet

from ahkio.core import machine
from ahkio.core.stage import build


@pytest.fixture(scope="session", autouse=True)
def stated_peak():
    """Spare each run the measuring of this machine, which takes half a second and more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "peak_flops", lambda *_: (1e12, "stated"))
        yield


@pytest.fixture(scope="session")
def unbroken(inputs, tmp_path_factory):
    """The run, made in one go."""
    store = tmp_path_factory.mktemp("unbroken") / "artifacts"
    shutil.copytree(inputs, store)
    return build(TRAIN, store, quiet)


@pytest.fixture
def store(inputs, tmp_path):
    """A store of one's own with everything below the run."""
    shutil.copytree(inputs, tmp_path / "runs" / "artifacts")
    return tmp_path / "runs" / "artifacts"
