"""What training starts from has to fit what it reads."""

import json
import shutil
from dataclasses import dataclass, replace

import pytest
from small_run import TRAIN, WORDS, SmallModel, metrics, quiet

from ahkio.core.errors import UserError
from ahkio.core.mesh import Mesh
from ahkio.core.stage import build


@dataclass(frozen=True, kw_only=True)
class OtherTokenizer(SmallModel):
    """The small model with two bytes' tokens exchanged."""

    def run(self, out, inputs):
        facts = super().run(out, inputs)
        path = out / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        vocab = tokenizer["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
        path.write_text(json.dumps(tokenizer))
        return facts


def test_tokens_of_another_tokenizer_are_refused(store):
    with pytest.raises(UserError, match=r"'fi' was made with another tokenizer"):
        build(replace(TRAIN, start=OtherTokenizer()), store, quiet)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_learns_the_same(unbroken, store):
    made = build(replace(TRAIN, compile=True), store, quiet)
    for mine, plain in zip(metrics(made.path), metrics(unbroken.path), strict=True):
        assert mine["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert set(made.facts["ledger"]) == set(WORDS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mesh": Mesh(tensor=4)}, "mesh.tensor=4 does not divide the model's 2 kv heads"),
        ({"mesh": Mesh(context=32)}, "can't be cut into 2 chunks for each of 32 context ranks"),
        ({"mesh": Mesh(pipe=2), "heldout_context": 32, "micro_batch": 4}, "no whole number of micro-batches of 4"),
    ],
)
def test_a_mesh_that_divides_nothing_evenly_is_refused_before_any_process_starts(store, changes, sentence):
    def launch(stage):
        raise AssertionError("processes were started")

    with pytest.raises(UserError, match=sentence):
        build(replace(TRAIN, **changes), store, quiet, launch)


def test_processes_that_others_started_refuse_such_a_mesh_too(store, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="does not divide the model's 2 kv heads"):
        build(replace(TRAIN, mesh=Mesh(tensor=4)), store, quiet)
