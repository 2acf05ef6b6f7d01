"""Tasks and a budget on a mesh: the answers of one process, the same decision, and no trace in what is learnt."""

import shutil
from dataclasses import replace

import processes
import pytest
from small_run import metrics, quiet
from worker import ASKING

from ahkio.core.artifact import Artifact
from ahkio.core.stage import build

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    store = tmp_path_factory.mktemp("one") / "artifacts"
    shutil.copytree(inputs, store)
    return build(ASKING, store, quiet)


@pytest.mark.parametrize("mesh", [{"shard": 2}, {"tensor": 2}], ids=str)
def test_a_mesh_answers_and_decides_as_one_process_and_learns_the_same_without(inputs, alone, tmp_path, mesh):
    asked, unasked = (tmp_path / name / "artifacts" for name in ("asked", "unasked"))
    for store in (asked, unasked):
        shutil.copytree(inputs, store)
        build(ASKING.tasks[0].questions, store, quiet)
    jobs = [
        {"call": "asking", "store": str(asked), "mesh": mesh, "measure_every": 10},
        {"call": "asking", "store": str(unasked), "mesh": mesh, "tasks": []},
    ]
    assert processes.run(tmp_path, 2, jobs) == [True, True]
    mine, other = Artifact(asked / ASKING.name), Artifact(unasked / replace(ASKING, tasks=()).name)
    assert metrics(mine.path) == metrics(other.path)
    assert (mine.path / "model" / "model.safetensors").read_bytes() == (
        other.path / "model" / "model.safetensors"
    ).read_bytes()
    for name, points in alone.facts["tasks"].items():
        found = dict(mine.facts["tasks"][name])
        assert sorted(found) == [0, 4, 8, 10, 12, 16]
        for step, facts in points:
            assert found[step]["hash"] == facts["hash"]
            assert found[step]["metrics"] == pytest.approx(facts["metrics"], abs=1e-6)
    assert mine.facts["budget"]["stopped"]
    assert mine.facts["steps"] == alone.facts["steps"] == 12
