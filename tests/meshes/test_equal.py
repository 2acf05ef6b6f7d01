"""Losses do not depend on the mesh: tiny Llamas on processes that talk over gloo, against one process."""

from dataclasses import replace

import processes
import pytest
import torch
from small_run import MIX, SHAPE, TRAIN, save_tokenizer

from ahkio.model.hub import load_model, save_model
from ahkio.model.llama import random_model
from ahkio.model.shape import RopeScaling
from ahkio.tokens.batches import Rows, open_batches
from ahkio.train.engine import alone
from ahkio.train.step import train_step

STEPS, ROWS = 10, Rows(length=32, per_step=8)
SHAPES = {
    "untied": replace(SHAPE, layers=4, vocab=260, rope_scaling=RopeScaling(original=16)),
    "tied": replace(SHAPE, layers=4, vocab=260, tied=True, kv_heads=4),
}
MESHES = [
    {"shard": 2},
    {"replicate": 2},
    {"tensor": 2},
    {"pipe": 2},
    {"context": 2},
    {"shard": 4},
    {"tensor": 4},
    {"context": 4},
    {"replicate": 2, "shard": 2},
    {"shard": 2, "tensor": 2},
    {"shard": 2, "pipe": 2},
    {"tensor": 2, "pipe": 2},
    {"context": 2, "tensor": 2},
    {"context": 2, "pipe": 2},
    {"shard": 2, "tensor": 2, "pipe": 2},
]


def named(mesh):
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folders = {}
    for name, shape in SHAPES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        save_model(random_model(shape, 0, 0.1), folders[name], torch.float32, bos=0, eos=1)
        save_tokenizer(folders[name])
    return folders


@pytest.fixture(scope="module")
def one_process(models, inputs):
    """[loss, norm] of each step, and the rows of each, by model."""
    paths = {stage: inputs / stage.name for stage in MIX.sources.values()}
    batches = open_batches(MIX, paths, ROWS, STEPS * ROWS.per_step)
    found = {}
    for name, folder in models.items():
        model = load_model(folder)
        engine, optimizer = alone(model, TRAIN.objective), TRAIN.optimizer.build(model)
        found[name] = [
            train_step(engine, optimizer, list(batches.micro(step, 4)), 1e-2 * (step + 1) / STEPS, 1.0)[:2]
            for step in range(STEPS)
        ]
    return found


@pytest.fixture(scope="module")
def on_meshes(models, inputs, tmp_path_factory):
    """What worker.steps returns by (model, mesh's name), all meshes of a size by the same processes."""
    found = {}
    for size in (2, 4, 8):
        jobs = {}
        for mesh in MESHES:
            if torch.tensor(list(mesh.values())).prod() == size:
                for name, folder in models.items():
                    if SHAPES[name].kv_heads % mesh.get("tensor", 1) == 0:
                        jobs[name, named(mesh)] = job(folder, inputs, mesh)
        made = processes.run(tmp_path_factory.mktemp(f"of-{size}"), size, list(jobs.values()))
        found |= dict(zip(jobs, made, strict=True))
    return found


def job(model, inputs, mesh, **settings):
    return {"call": "steps", "model": str(model), "inputs": str(inputs), "mesh": mesh, "count": STEPS} | settings


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("mesh", MESHES, ids=named)
def test_losses_do_not_depend_on_the_mesh(on_meshes, one_process, name, mesh):
    if SHAPES[name].kv_heads % mesh.get("tensor", 1):
        pytest.skip("its key/value heads can't be divided so")
    found = on_meshes[name, named(mesh)]
    for (loss, norm), (wanted_loss, wanted_norm) in zip(found["steps"], one_process[name], strict=True):
        assert loss == pytest.approx(wanted_loss, abs=1e-5)
        assert norm == pytest.approx(wanted_norm, rel=1e-4)
    for step, by_rank in enumerate(found["rows"]):
        assert sorted({row for rows in by_rank for row in rows}) == list(range(step * 8, step * 8 + 8))
