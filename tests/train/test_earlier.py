"""A recipe of which only what lies ahead was changed goes on from its earlier run, and ends as if made from nothing."""

import shutil
from dataclasses import replace

import pytest
from small_run import MIX, TRAIN, metrics, quiet, tokens, weights

from ahkio.core.stage import build
from ahkio.tokens.mixture import Mix, Segment, Share
from ahkio.train.optimizer import WSD

STEADY = replace(TRAIN, schedule=WSD(peak=1e-2, warmup=2, decay=0.25), save_every=2, keep=9)
ROWS = TRAIN.rows.per_step
SHARES = MIX.segments[0].shares


def mix(*segments):
    """Segments of (steps, weights of fi and en)."""
    return Mix(
        segments=tuple(
            Segment(
                rows=steps * ROWS, shares=tuple(Share(name=n, tokens=tokens(n), weight=w) for n, w in shares.items())
            )
            for steps, shares in segments
        )
    )


FIRST = replace(STEADY, mix=mix((0, {"fi": 2, "en": 1})), steps=8)
CHANGES = {
    "other weights from step 4 on": {"mix": mix((4, {"fi": 2, "en": 1}), (0, {"fi": 1, "en": 2}))},
    "a longer budget": {"steps": 12},
    "an annealing tail": {"mix": mix((6, {"fi": 2, "en": 1}), (0, {"en": 1})), "steps": 10},
    "a source that ends": {"mix": mix((6, {"fi": 2, "en": 1}), (0, {"fi": 1}))},
}


@pytest.fixture(scope="module")
def first(inputs, tmp_path_factory):
    store = tmp_path_factory.mktemp("first") / "artifacts"
    shutil.copytree(inputs, store)
    return build(FIRST, store, quiet)


@pytest.fixture
def began(first, tmp_path):
    """A store of one's own with that run."""
    shutil.copytree(first.path.parent, tmp_path / "artifacts")
    return tmp_path / "artifacts"


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_ahead_goes_on_from_the_earlier_run_and_ends_in_the_same_bits(began, store, change):
    run = replace(FIRST, **CHANGES[change])
    alone = build(run, store, quiet)
    went_on = build(run, began, quiet)
    (found,) = went_on.facts["continued"]
    assert (found["run"], alone.facts["continued"]) == (FIRST.name, [])
    assert 4 <= found["step"] <= 8
    assert weights(went_on.path) == weights(alone.path)
    assert metrics(went_on.path) == metrics(alone.path)
    assert went_on.facts["ledger"] == alone.facts["ledger"]
    assert went_on.facts["accepted"] == []


@pytest.mark.parametrize(
    "change",
    [
        {"mix": mix((1, {"fi": 2, "en": 1}), (0, {"fi": 1, "en": 2}))},
        {"mix": replace(FIRST.mix, seed=1)},
        {"rows": replace(TRAIN.rows, documents="across")},
        {"schedule": WSD(peak=2e-2, warmup=2, decay=0.25)},
    ],
    ids=["past rows", "their order", "what they hold", "past rates"],
)
def test_a_change_of_the_past_begins_anew(began, change):
    made = build(replace(FIRST, **change), began, quiet)
    assert made.facts["continued"] == []
    assert made.facts["restarts"] == 0


def test_a_longer_budget_that_changes_past_rates_is_to_be_accepted_and_is_recorded(began):
    cosine = replace(FIRST, schedule=TRAIN.schedule)
    build(cosine, began, quiet)
    longer = replace(cosine, steps=12)
    accepting = build(replace(longer, accept=True), began, quiet)
    assert accepting.facts["continued"] == [{"run": cosine.name, "step": 8}]
    assert [(one["field"], one["old"], one["new"]) for one in accepting.facts["accepted"]] == [("steps", 8, 12)]
    again = build(replace(longer, steps=16), began, quiet)
    assert again.facts["continued"] == []  # a past that was only accepted is nobody else's
