"""The recipes of the 8B and the 70B run: their own settings and kinds of mesh, with depth and width cut."""

import shutil

import processes
import pytest
from small_poro import SMALL, life
from small_run import quiet
from transformers import AutoModelForCausalLM

from ahkio.core.artifact import Artifact
from ahkio.core.stage import build


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_of_poro_2_runs_to_a_folder_that_transformers_reads(inputs, tmp_path, name):
    train, export = life(name)
    store = tmp_path / "artifacts"
    shutil.copytree(inputs, store)
    build(train.start, store, quiet)
    assert processes.run(tmp_path / "run", train.processes, [{"call": "poro", "store": str(store), "name": name}])[0]
    facts = Artifact(store / train.name).facts
    assert facts["steps"] == 2
    assert facts["hardware"]["devices"] == train.mesh.devices
    made = build(export, store, quiet)
    assert made.facts["verified"]["checked"]
    theirs = AutoModelForCausalLM.from_pretrained(made.path)
    assert theirs.num_parameters() == train.start.shape.parameters
