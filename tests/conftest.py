"""What all tests share: one thread each, no failure for want of a GPU, and what lies below a small training run."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the processes that tests start


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A store that holds everything below the small training run."""
    from small_run import TRAIN, quiet

    from ahkio.core.stage import build, inputs_of

    store = tmp_path_factory.mktemp("inputs") / "artifacts"
    for needed in inputs_of(TRAIN):
        build(needed, store, quiet)
    return store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("AHKIO_SLOW") != "1":
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes on a machine of its own; AHKIO_SLOW=1 runs it"))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device here"))
