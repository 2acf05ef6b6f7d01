"""A run saved under one mesh goes on under another, and under the same one to the bit."""

import json
import shutil

import processes
import pytest
from safetensors.torch import load_file
from small_run import metrics, quiet
from transformers import AutoModelForCausalLM
from worker import RUN

from ahkio.core.artifact import Artifact
from ahkio.core.stage import build

pytestmark = pytest.mark.timeout(900)
CHAIN = ({"shard": 4}, {"shard": 2, "tensor": 2}, {"pipe": 2}, {"context": 2}, {})


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    """The run in one process, in one go."""
    store = tmp_path_factory.mktemp("one") / "artifacts"
    shutil.copytree(inputs, store)
    return build(RUN, store, quiet)


def size(mesh):
    total = 1
    for ranks in mesh.values():
        total *= ranks
    return total


def live(store, folder, mesh, calls=None, **settings):
    """Whether the run was finished by processes of `mesh`, which die in the step after so many."""
    if not mesh:
        build(RUN, store, quiet)
        return True
    job = {"call": "life", "store": str(store), "mesh": mesh, "calls": calls} | settings
    return processes.run(folder, size(mesh), [job])[0]


def same(made, wanted, loss=1e-5):
    assert made.facts["ledger"] == wanted.facts["ledger"]
    for mine, other in zip(metrics(made.path), metrics(wanted.path), strict=True):
        assert mine["step"] == other["step"]
        assert mine["loss"] == pytest.approx(other["loss"], abs=loss)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    for name, points in wanted.facts["bits_per_byte"].items():
        for (step, value), (other_step, other) in zip(made.facts["bits_per_byte"][name], points, strict=True):
            assert (step, value) == (other_step, pytest.approx(other, abs=1e-5))


def test_a_run_goes_on_from_mesh_to_mesh(inputs, unbroken, tmp_path):
    store = tmp_path / "artifacts"
    shutil.copytree(inputs, store)
    for number, mesh in enumerate(CHAIN[:-1]):
        assert not live(store, tmp_path / str(number), mesh, calls=2)
    assert live(store, tmp_path, CHAIN[-1])
    made = Artifact(store / RUN.name)
    assert made.facts["restarts"] == len(CHAIN) - 1
    same(made, unbroken)


@pytest.mark.parametrize("mesh", [{"shard": 2}, {"tensor": 2}, {"pipe": 2}], ids=str)
def test_on_the_same_mesh_a_run_goes_on_to_the_bit(inputs, unbroken, tmp_path, mesh):
    whole, broken = (tmp_path / name / "artifacts" for name in ("whole", "broken"))
    for store in (whole, broken):
        shutil.copytree(inputs, store)
    assert live(whole, tmp_path / "w", mesh)
    assert not live(broken, tmp_path / "b0", mesh, calls=5)
    assert live(broken, tmp_path / "b1", mesh)
    one, other = (Artifact(store / RUN.name) for store in (whole, broken))
    assert metrics(one.path) == metrics(other.path)
    weights = [(made.path / "model" / "model.safetensors").read_bytes() for made in (one, other)]
    assert weights[0] == weights[1]
    same(one, unbroken)


def test_what_a_mesh_has_learnt_is_a_folder_that_transformers_reads(inputs, unbroken, tmp_path):
    store = tmp_path / "artifacts"
    shutil.copytree(inputs, store)
    assert live(store, tmp_path / "run", {"shard": 2, "pipe": 2})
    folder = store / RUN.name / "model"
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    wanted = load_file(unbroken.path / "model" / "model.safetensors")
    for name, weight in load_file(folder / "model.safetensors").items():
        assert (weight - wanted[name]).abs().max() < 1e-4
        assert (theirs.get_parameter(name) == weight).all()
    checkpoint = next((store / RUN.name / "checkpoints").iterdir())
    files = json.loads((checkpoint / "state.json").read_text())["files"]
    assert sorted(files) == [f"rank-{rank:05d}.safetensors" for rank in range(4)]
