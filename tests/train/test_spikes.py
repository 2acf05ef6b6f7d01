"""A batch that would harm the model is gone by, and told of."""

import json
import math
from dataclasses import replace

import pytest
from small_run import MIX, TRAIN, Poisoned, metrics, quiet, weights
from test_resume import stop_at

from ahkio.core.artifact import draft_of
from ahkio.core.errors import UserError
from ahkio.core.stage import build
from ahkio.tokens.batches import open_batches
from ahkio.train import loop
from ahkio.train.spikes import Spikes

BAD = 5  # the step whose batch is poisoned
SPIKES = Spikes(deviations=100, window=4)


def batches_of(store):
    return open_batches(MIX, {stage: store / stage.name for stage in MIX.sources.values()}, TRAIN.rows, 48)


def poisoned(store, factor=math.inf, spikes=SPIKES):
    """The small run with a batch that gives no good loss."""
    labels = batches_of(store).read(range(48)).labels_BT.tolist()
    bad = labels[BAD * 6 + 1]
    assert labels.count(bad) == 1
    return replace(TRAIN, objective=Poisoned(row=tuple(bad), factor=factor), spikes=spikes)


@pytest.fixture(scope="module")
def without(inputs, tmp_path_factory):
    """The run that left the batch out."""
    store = tmp_path_factory.mktemp("without") / "artifacts"
    store.mkdir(parents=True)
    for path in inputs.iterdir():
        (store / path.name).symlink_to(path)
    return build(poisoned(store), store, quiet)


def test_a_run_goes_back_and_comes_by_without_the_batch(without):
    (gone,) = without.facts["skipped"]
    assert (gone["step"], gone["back_to"], gone["loss"]) == (BAD, 4, None)
    assert [line["step"] for line in metrics(without.path)] == [step for step in range(8) if step != BAD]
    assert without.facts["restarts"] == 0


def test_the_ledger_is_the_plans_but_for_the_batch(without, inputs, unbroken):
    batch = batches_of(inputs).read(range(BAD * 6, BAD * 6 + 6))
    for name, source in unbroken.facts["ledger"].items():
        mine = [row for row, its in enumerate(batch.sources) if its == name]
        trained = int((batch.labels_BT[mine] != -100).sum())
        assert without.facts["ledger"][name]["rows"] == source["rows"] - len(mine)
        assert without.facts["ledger"][name]["trained_tokens"] == source["trained_tokens"] - trained


def test_steps_before_are_those_of_the_run_without_poison(without, unbroken):
    assert metrics(without.path)[:BAD] == metrics(unbroken.path)[:BAD]


def test_how_bad_a_batch_was_does_not_matter(without, store):
    made = build(poisoned(store, factor=1e6), store, quiet)
    assert weights(made.path) == weights(without.path)
    assert metrics(made.path) == metrics(without.path)
    (gone,) = made.facts["skipped"]
    assert gone["loss"] > 1e5


@pytest.mark.parametrize("calls", [3, 6, 7, 8])
def test_a_run_that_was_stopped_leaves_out_the_same(without, store, monkeypatch, calls):
    run = poisoned(store)
    stop_at(monkeypatch, loop, "train_step", calls, store, run)
    made = build(run, store, quiet)
    assert weights(made.path) == weights(without.path)
    assert metrics(made.path) == metrics(without.path)
    for fact in ("ledger", "skipped", "bits_per_byte"):
        assert made.facts[fact] == without.facts[fact]
    assert made.facts["restarts"] == 1


def test_without_a_checkpoint_it_goes_on_from_where_it_is(without, store):
    made = build(replace(poisoned(store), save_every=0), store, quiet)
    assert weights(made.path) == weights(without.path)
    assert made.facts["skipped"][0]["back_to"] == BAD


def test_more_spikes_than_are_allowed_end_the_run_with_their_texts(store):
    run = poisoned(store, spikes=replace(SPIKES, rollbacks=0))
    with pytest.raises(UserError, match=r"^Step 5 gave a loss of inf .* after 0 rollbacks already"):
        build(run, store, quiet)
    written = (draft_of(store / run.name) / "spikes.jsonl").read_text()
    rows = [json.loads(line) for line in written.splitlines()]
    assert [row["row"] for row in rows] == list(range(30, 36))
    assert all(row["step"] == BAD and row["loss"] is None and row["text"] for row in rows)
    assert not (store / run.name).exists()


def test_a_step_is_compared_with_the_last_ones_once_half_a_window_is_known():
    spikes = Spikes(deviations=10, window=8)
    calm = [(4.0 + 0.1 * (step % 2), 1.0) for step in range(8)]
    assert spikes.healthy(calm[:3], (400.0, 1.0))
    assert not spikes.healthy(calm, (400.0, 1.0))
    assert not spikes.healthy(calm, (4.0, 400.0))
    assert spikes.healthy(calm, (4.3, 1.005))
    assert spikes.healthy(calm, (1.0, 0.1))
    assert not spikes.healthy([], (math.inf, 1.0))
    assert replace(spikes, deviations=0).healthy(calm, (400.0, 400.0))
