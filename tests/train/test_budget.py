"""What a run may forget, and what becomes of one that forgets more."""

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from small_run import MIX, TRAIN, metrics, quiet, weights

from ahkio.__main__ import main
from ahkio.core import state
from ahkio.core.artifact import Artifact, draft_of
from ahkio.core.errors import UserError
from ahkio.core.log import METRICS
from ahkio.core.stage import build
from ahkio.tokens.batches import Rows
from ahkio.tokens.mixture import Mix, Segment
from ahkio.train import loop
from ahkio.train.budget import Budget
from ahkio.train.optimizer import WSD, Cosine

POINTS = {"en": [(0, 2.0), (2, 2.01), (3, 9.0), (4, 2.03), (6, 2.01)], "fi": [(0, 3.0), (2, 2.9), (4, 2.8), (6, 2.7)]}
EN = (("en", 1.0),)
RUN = replace(  # forgets English from step 8 on, and with replay does not
    TRAIN,
    mix=Mix(segments=(Segment(rows=0, shares=MIX.segments[0].shares[:1]),)),
    steps=20,
    rows=Rows(length=32, per_step=2),
    schedule=Cosine(peak=2e-2, warmup=0.1),
    save_every=100,
)


def budgeted(action, run=RUN, limits=EN, every=2):
    return replace(run, budget=Budget(limits=limits, action=action, every=every))


@pytest.fixture(scope="module")
def shared(inputs, tmp_path_factory):
    store = tmp_path_factory.mktemp("budget") / "runs" / "artifacts"
    shutil.copytree(inputs, store)
    return store


@pytest.fixture(scope="module")
def made(shared):
    """The run under each action."""
    return {action: build(budgeted(action), shared, quiet) for action in ("warn", "stop", "keep")}


# ---------------------------------------------------------------------------------------------------------------------
# As a value


def test_a_budget_judges_every_so_many_steps_and_after_the_last_by_the_change_since_the_start():
    budget = Budget(limits=(("en", 1.0), ("fi", 0.0)), every=4)
    one, last = budget.judged(POINTS, 6)
    assert (one.step, last.step) == (4, 6)
    assert one.changes == pytest.approx({"en": 1.5, "fi": -100 / 15})
    assert one.over == ("en",)
    assert last.over == ()


def test_steps_at_which_not_all_was_measured_are_not_judged():
    budget = Budget(limits=(("en", 1.0), ("fi", 0.0)), every=2)
    late = POINTS | {"fi": POINTS["fi"][2:]}
    assert [one.step for one in budget.judged(late, 6)] == [4, 6]
    assert budget.judged({}, 6) == []


@pytest.mark.parametrize(("action", "held", "stops"), [("warn", None, False), ("keep", 2, False), ("stop", 2, True)])
def test_the_action_decides_whether_the_run_ends_and_which_model_it_gives(action, held, stops):
    budget = Budget(limits=EN, action=action, every=2)
    points = {"en": [(0, 2.0), (2, 2.01), (4, 2.03)]}
    assert budget.held(points, 6) == held
    assert budget.stops(points, 6) is stops
    assert budget.saves(points, 4, 6) is stops
    assert budget.model_step(points, 4, 6) == (4 if action == "warn" else 2)


def test_what_is_not_a_number_holds_no_budget():
    (one,) = Budget(limits=EN, every=1).judged({"en": [(0, 2.0), (1, float("nan"))]}, 1)
    assert one.over == ("en",)


def test_a_run_without_a_budget_judges_nothing():
    budget = Budget()
    assert not budget.due(100, 100)
    assert budget.judged(POINTS, 6) == []
    assert budget.model_step(POINTS, 6, 6) == 6
    assert not budget.saves(POINTS, 6, 6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"limits": (("en", 1.0), ("en", 2.0))}, "twice"),
        ({"limits": (("en", -1.0),)}, "below 0 for 'en'"),
        ({"limits": EN, "every": 0}, "at least 1"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        Budget(**fields)


def test_a_limit_on_what_is_not_measured_is_refused_with_a_near_name():
    with pytest.raises(UserError, match=r"not in heldout; there: fi, en. Did you mean 'en'"):
        budgeted("warn", limits=(("ens", 1.0),))


def test_the_budget_is_part_of_the_name():
    assert len({RUN.name, *(budgeted(action).name for action in ("warn", "stop", "keep"))}) == 4
    assert budgeted("stop").name == replace(budgeted("stop"), measure_every=1).name


# ---------------------------------------------------------------------------------------------------------------------
# In a run


def test_a_run_without_replay_breaks_it_and_is_stopped(made):
    facts, whole = made["stop"].facts, made["warn"].facts
    budget = facts["budget"]
    assert (budget["broken"], budget["stopped"], budget["planned_steps"]) == (True, True, 20)
    *held, broken = budget["judged"]
    assert not any(one["over"] for one in held)
    assert broken["over"] == ["en"]
    assert broken["step"] < 20
    assert budget["model_step"] == facts["steps"] == held[-1]["step"]
    assert facts["tokens"] == facts["steps"] * 64 == sum(source["tokens"] for source in facts["ledger"].values())
    assert len(metrics(made["stop"].path)) == broken["step"] + len(budget["judged"])
    assert budget["judged"] == whole["budget"]["judged"][: len(budget["judged"])]
    assert budget["limits"]["en"]["documents"] == 5
    assert "where the run was stopped; the model is that of step" in budget["verdict"]


def test_a_run_with_replay_keeps_it(store):
    replay = replace(RUN, mix=Mix(segments=(Segment(rows=0, shares=MIX.segments[1].shares),)))
    facts = build(budgeted("stop", replay), store, quiet).facts
    assert not facts["budget"]["broken"]
    assert facts["steps"] == facts["budget"]["model_step"] == 20
    assert facts["budget"]["verdict"].startswith(
        "bits per byte at most +1% on en (5 documents); held at all 10 judgings"
    )


def test_a_warning_changes_nothing_but_the_record(made, shared):
    plain = build(RUN, shared, quiet)
    assert weights(made["warn"].path) == weights(plain.path)
    assert "budget" not in plain.facts
    judged = made["warn"].facts["budget"]["judged"]
    lines = [json.loads(line) for line in (made["warn"].path / METRICS).read_text().splitlines()]
    told = {line["step"] + 1: line["budget/en"] for line in lines if "budget/en" in line}
    assert told == {one["step"]: one["changes"]["en"] for one in judged}
    assert [line for line in metrics(made["warn"].path) if "loss" in line] == metrics(plain.path)


@pytest.mark.parametrize("action", ["stop", "keep"])
def test_the_model_is_that_of_the_last_judging_that_held(made, action):
    facts = made[action].facts
    folder = state.checkpoint_of(made[action].path / "checkpoints", facts["budget"]["model_step"])
    assert facts["loss_last"] == metrics_of_steps(made[action])[facts["steps"] - 1]["loss"]
    checkpoint = load_file(folder / state.TENSORS)
    model = load_file(made[action].path / "model" / "model.safetensors")
    assert (checkpoint["weight.embed.weight"] == model["model.embed_tokens.weight"]).all()
    assert state.read_state(folder)["held"] == facts["budget"]["model_step"]
    assert weights(made[action].path) == weights(made["stop"].path) != weights(made["warn"].path)


def metrics_of_steps(made):
    return [line for line in metrics(made.path) if "loss" in line]


def test_keeping_goes_on_to_the_end(made):
    facts = made["keep"].facts
    assert len(metrics_of_steps(made["keep"])) == 20
    assert facts["bits_per_byte"] == made["warn"].facts["bits_per_byte"]
    kept = sorted(path.name for path in (made["keep"].path / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (facts["steps"], 20)]


@pytest.mark.parametrize("action", ["stop", "keep"])
@pytest.mark.parametrize("calls", [5, 13, 18])
def test_a_run_that_was_killed_comes_to_the_same_decision(made, store, monkeypatch, action, calls):
    real, left = loop.train_step, iter([None] * calls)

    def dying(*arguments):
        next(left)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dying)
        try:
            build(budgeted(action), store, quiet)
        except (StopIteration, RuntimeError):
            assert draft_of(store / budgeted(action).name).exists()
    again = build(budgeted(action), store, quiet)
    for fact in ("budget", "ledger", "bits_per_byte", "steps", "loss_last"):
        assert again.facts[fact] == made[action].facts[fact]
    assert weights(again.path) == weights(made[action].path)
    assert metrics(again.path) == metrics(made[action].path)


def test_a_stopped_run_that_died_before_its_model_was_written_takes_no_more_steps(made, store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_shards", None)
        with pytest.raises(TypeError):
            build(budgeted("stop"), store, quiet)
    monkeypatch.setattr(loop, "train_step", None)
    again = build(budgeted("stop"), store, quiet)
    assert weights(again.path) == weights(made["stop"].path)


def test_a_budget_that_never_held_is_refused(store):
    with pytest.raises(UserError, match=r"broken at every judging: broken after step 20 of 20 \(en \+.*budget.every"):
        build(budgeted("keep", every=20), store, quiet)


def test_a_checkpoint_that_held_and_is_gone_is_missed_in_a_sentence(made, store):
    run = budgeted("keep")
    shutil.copytree(made["keep"].path, draft_of(store / run.name))
    (draft_of(store / run.name) / "manifest.json").unlink()
    step = made["keep"].facts["steps"]
    shutil.rmtree(state.checkpoint_of(draft_of(store / run.name) / "checkpoints", step))
    with pytest.raises(UserError, match="held the budget, but is gone"):
        build(run, store, quiet)


def test_a_longer_run_goes_on_with_the_checkpoint_that_held(made, store):
    """Of a run whose steps were changed, the one that held comes along with the newest."""
    steady = replace(RUN, schedule=WSD(peak=2e-2, warmup=2, decay=0.0), save_every=4)
    short = build(budgeted("keep", replace(steady, steps=16)), store, quiet)
    long = build(budgeted("keep", steady), store, quiet)
    assert long.facts["continued"] == [{"run": short.path.name, "step": 16}]
    assert long.facts["budget"]["model_step"] == short.facts["budget"]["model_step"] < 16
    assert weights(long.path) == weights(short.path)


# ---------------------------------------------------------------------------------------------------------------------
# On the command line


@pytest.mark.parametrize(("action", "status"), [("warn", 0), ("keep", 0), ("stop", 3)])
def test_build_says_what_was_broken_and_exits_with_3_after_a_stop(made, shared, tmp_path, capsys, action, status):
    recipe = tmp_path / "forgetting.py"
    recipe.write_text(f"from test_budget import budgeted\nTRAIN = budgeted({action!r})\n")
    for _ in range(2):  # it says so as often as it is asked
        assert main(["build", str(recipe), "--runs", str(shared.parent)]) == status
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ahkio:")]
        assert f"TRAIN broke its forgetting budget: {made[action].facts['budget']['verdict']}" in said


def test_build_says_nothing_of_a_budget_that_held(store, tmp_path, capsys):
    recipe = tmp_path / "holding.py"
    recipe.write_text("from test_budget import budgeted\nTRAIN = budgeted('stop', limits=(('en', 100.0),), every=20)\n")
    assert main(["build", str(recipe), "--runs", str(store.parent)]) == 0
    assert "budget:" not in capsys.readouterr().err
    assert Artifact(next(store.glob("train-*[0-9a-f]"))).facts["budget"]["broken"] is False
