"""A run on packed rows, and a run whose budget is epochs of a source."""

import shutil
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from small_run import MIX, TRAIN, metrics, quiet, tokens, weights

from ahkio.core import state
from ahkio.core.artifact import Artifact, draft_of
from ahkio.core.config import apply_overrides
from ahkio.core.errors import UserError
from ahkio.core.stage import Stage, build, inputs_of, knowledge
from ahkio.model.hub import load_model
from ahkio.tokens.batches import Rows, open_batches
from ahkio.tokens.mixture import Mix, Segment, Share, epochs
from ahkio.tokens.packing import Packed
from ahkio.tokens.shards import TokenStore
from ahkio.train import loop
from ahkio.train.engine import alone
from ahkio.train.losses import trained_tokens
from ahkio.train.objectives import NextToken
from ahkio.train.peek import peek_rows

T = 32
FI, EN = (Packed(tokens=tokens(name), length=T) for name in ("fi", "en"))
PACKED_MIX = Mix(
    segments=(Segment(rows=0, shares=(Share(name="fi", tokens=FI, weight=2), Share(name="en", tokens=EN, weight=1))),)
)
PACKED = replace(TRAIN, mix=PACKED_MIX)


@pytest.fixture(scope="module")
def packed(inputs, tmp_path_factory):
    """A store with all that lies below the packed run."""
    store = tmp_path_factory.mktemp("packed") / "artifacts"
    shutil.copytree(inputs, store)
    for needed in inputs_of(PACKED):
        build(needed, store, quiet)
    return store


@pytest.fixture(scope="module")
def whole(packed, tmp_path_factory):
    """The packed run, made in one go."""
    store = tmp_path_factory.mktemp("whole") / "artifacts"
    shutil.copytree(packed, store)
    return build(PACKED, store, quiet)


@pytest.fixture
def own(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "artifacts")
    return tmp_path / "artifacts"


def alone_loss(model, ids):
    """The summed loss of one document, cut into pieces that do not see each other, and how many tokens it predicts."""
    total = torch.zeros(())
    for at in range(0, len(ids) - 1, T):
        piece, labels = torch.tensor(ids[at : at + T]), torch.tensor(ids[at + 1 : at + T + 1])
        x = model(piece[None], torch.arange(len(piece))[None], torch.tensor([0, len(piece)]).int(), len(piece))
        total = total + F.cross_entropy(model.logits(x[0, : len(labels)]), labels, reduction="sum")
    return total.item(), len(ids) - 1


@torch.no_grad()
def test_the_loss_of_packed_rows_is_the_mean_over_their_documents_alone(packed):
    model = load_model(packed / TRAIN.start.name)
    store = TokenStore(packed / tokens("fi").name)
    mix = Mix(segments=(Segment(rows=0, shares=(Share(name="fi", tokens=FI, weight=1),)),))
    batches = open_batches(mix, {FI: packed / FI.name}, Rows(length=T), 1)
    batch = batches.read(range(batches.plan.available["fi"]))
    assert sum(batch.padding) > 0
    each = [alone_loss(model, store.document(number).tolist()) for number in range(store.documents)]
    total, count = map(sum, zip(*each, strict=True))
    engine = alone(model, NextToken())
    assert trained_tokens(batch) == engine.count([batch]) == count
    assert engine.total([batch]) / count == pytest.approx(total / count, rel=1e-5)


def test_a_packed_run_learns_and_its_ledger_is_arithmetic(whole, packed):
    assert whole.facts["loss_last"] < whole.facts["loss_first"] - 0.5
    foretold = PACKED.forecast(knowledge(packed))["sources"]
    paths = {stage: packed / stage.name for stage in (FI, EN)}
    read = open_batches(PACKED_MIX, paths, TRAIN.rows, PACKED.total_rows).read(range(PACKED.total_rows))
    for name, source in whole.facts["ledger"].items():
        rows = [i for i, other in enumerate(read.sources) if other == name]
        assert source["rows"] == foretold[name]["rows"] == len(rows)
        assert source["tokens"] == foretold[name]["tokens"] == T * len(rows)
        assert source["padding"] == sum(read.padding[i] for i in rows) > 0
        assert source["documents"] == sum(read.documents[i] for i in rows)
        assert source["trained_tokens"] == (read.labels_BT[rows] != -100).sum()
        assert source["epochs"] == pytest.approx(foretold[name]["epochs"], abs=1e-3)
    checkpoint = state.checkpoints(whole.path / "checkpoints")[-1]
    assert state.read_state(checkpoint)["ledger"].keys() == whole.facts["ledger"].keys()


def test_one_epoch_of_a_packed_source_trains_what_was_packed(packed, own):
    mix = Mix(segments=(Segment(rows=0, shares=(Share(name="fi", tokens=FI, weight=1),)),))
    made = build(replace(TRAIN, mix=mix, steps=epochs("fi"), rows=Rows(length=T, per_step=1), heldout=()), own, quiet)
    facts = Artifact(packed / FI.name).facts
    ledger = made.facts["ledger"]["fi"]
    assert (made.facts["steps"], ledger["epochs"]) == (facts["rows"], 1.0)
    assert ledger["padding"] == facts["padding"] == facts["rows"] * T - facts["tokens"]
    assert ledger["trained_tokens"] == facts["trained_tokens"] == facts["tokens"] - facts["documents"]


class KilledError(Exception):
    """Stands for whatever ends a process."""


def stop_after(steps, stage, store, monkeypatch):
    real, calls = loop.train_step, []

    def stopping(*arguments, **options):
        calls.append(1)
        if len(calls) > steps:
            raise KilledError
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopping)
        with pytest.raises(KilledError):
            build(stage, store, quiet)


def test_a_packed_run_that_was_stopped_goes_on_to_the_bit(whole, own, monkeypatch):
    stop_after(5, PACKED, own, monkeypatch)
    made = build(PACKED, own, quiet)
    assert weights(made.path) == weights(whole.path)
    assert metrics(made.path) == metrics(whole.path)
    assert made.facts["ledger"] == whole.facts["ledger"]


def test_packed_rows_are_shown_without_their_padding(packed):
    paths = {stage: packed / stage.name for stage in (FI, EN)}
    batches = open_batches(PACKED_MIX, paths, TRAIN.rows, PACKED.total_rows)
    for row in peek_rows(PACKED, packed, 1):
        batch = batches.read([row["row"]])
        assert row["ids"] == batch.ids_BT[0].tolist()[: T - row["padding"]]
        assert row["documents"] == batch.documents[0] == max(1, row["ids"].count(1))  # EOS
        assert row["trained_tokens"] == len(row["ids"]) - row["ids"].count(1)  # all but EOS


def test_rows_of_another_length_are_refused_by_plan_and_by_the_run(own):
    other = replace(PACKED, rows=replace(PACKED.rows, length=64))
    assert "packed into rows of 32 tokens" in other.forecast(knowledge(own))["refusal"]
    with pytest.raises(UserError, match="packed into rows of 32 tokens"):
        build(other, own, quiet)


# ---------------------------------------------------------------------------------------------------------------------
# A budget of epochs

OPEN_MIX = replace(MIX, segments=(replace(MIX.segments[0], rows=0),))
ONCE = replace(TRAIN, mix=OPEN_MIX, steps=epochs("en", 0.5), save_every=1)


def test_a_budget_of_epochs_is_the_most_steps_within_it(inputs):
    told = ONCE.forecast(knowledge(inputs))
    assert told["sources"]["en"]["epochs"] <= 0.5
    longer = replace(ONCE, steps=told["steps"] + 1).forecast(knowledge(inputs))
    assert longer["sources"]["en"]["epochs"] > 0.5
    assert replace(ONCE, steps=told["steps"]).forecast(knowledge(inputs)) == told


def test_a_run_of_epochs_is_the_run_of_so_many_steps_and_resumes(inputs, own, tmp_path, monkeypatch):
    steps = ONCE.forecast(knowledge(inputs))["steps"]
    same = build(replace(ONCE, steps=steps), shutil.copytree(own, tmp_path / "elsewhere"), quiet)
    stop_after(2, ONCE, own, monkeypatch)
    assert ONCE.progress(draft_of(own / ONCE.name)) == "2 steps"
    made = build(ONCE, own, quiet)
    assert made.path != same.path
    assert made.manifest["what"]["steps"] == {"is": "Epochs", "source": "en", "times": 0.5}
    assert (made.facts["steps"], made.facts["restarts"]) == (steps, 1)
    assert weights(made.path) == weights(same.path)
    assert metrics(made.path) == metrics(same.path)
    assert peek_rows(ONCE, own, steps - 1) == peek_rows(replace(ONCE, steps=steps), own, steps - 1)
    with pytest.raises(UserError, match=f"the run has {steps} steps"):
        peek_rows(ONCE, own, steps)


def test_the_command_line_can_state_steps_or_other_epochs():
    (stated, more) = (
        apply_overrides({"TRAIN": ONCE}, "TRAIN", [text])["TRAIN"] for text in ("train.steps=100", "steps.times=2")
    )
    assert stated == replace(ONCE, steps=100)
    assert more == replace(ONCE, steps=epochs("en", 2))
    assert len({ONCE.name, stated.name, more.name}) == 3
    assert replace(ONCE, steps=epochs("en", 1)).name == replace(ONCE, steps=epochs("en", 1.0)).name


@dataclass(frozen=True, kw_only=True)
class Expected(Stage):
    """Tokens that are not there, but expected."""

    tokens: int

    def forecast(self, known):
        return {"tokens": self.tokens, "estimated": "stated in the recipe"} if self.tokens else {}


def expecting(count, times=1.0, rows=0, **settings):
    shares = tuple(
        Share(name=name, tokens=Expected(tokens=count if name == "finnish" else 10**11), weight=weight)
        for name, weight in {"finnish": 30, "english": 30, "code": 30, "math": 10}.items()
    )
    mix = Mix(segments=(Segment(rows=rows, shares=shares),))
    return replace(TRAIN, mix=mix, steps=epochs("finnish", times), rows=Rows(length=8192, per_step=512), **settings)


def test_one_epoch_of_the_playbooks_finnish_is_the_cards_steps(tmp_path):
    told = expecting(49_649_704_835).forecast(knowledge(tmp_path))
    assert told["steps"] == 39_458 == int(49_649_704_835 / 0.30 / 4_194_304)
    assert told["tokens"] == 165_498_847_232
    assert "stated in the recipe" in told["warnings"][-1]
    assert expecting(49_649_704_835, times=2).forecast(knowledge(tmp_path))["steps"] == 2 * 39_458
    # 3 of 10 rows: the 39,458th step needs 6,060,749 rows of Finnish, and a token more
    assert expecting(6_060_749 * 8192 + 1).forecast(knowledge(tmp_path))["steps"] == 39_458
    assert expecting(6_060_749 * 8192).forecast(knowledge(tmp_path))["steps"] == 39_457


def test_a_budget_that_makes_no_sense_is_refused_in_the_users_words(tmp_path):
    known = knowledge(tmp_path)
    with pytest.raises(UserError, match="no source of that name; it has: fi, en"):
        replace(TRAIN, steps=epochs("fin"))
    with pytest.raises(UserError, match="give a number above 0"):
        epochs("fi", 0)
    assert "reads more than 1 epoch of finnish" in expecting(8193).forecast(known)["refusal"]
    assert "are not counted yet" in expecting(0).forecast(known)["warnings"][0]
    assert "steps" not in expecting(0).forecast(known)
    assert "append a segment" in expecting(10**9, rows=1000).forecast(known)["refusal"]
    first, second = MIX.segments
    ends = replace(MIX, segments=(first, replace(second, shares=second.shares[:1])))
    counted = {stage: {"tokens": 10**6} for stage in ends.sources.values()} | {TRAIN.start: {}}
    told = replace(TRAIN, mix=ends, steps=epochs("en", 1)).forecast(lambda stage: counted[stage])
    assert "its last segment leaves that source out" in told["refusal"]
