"""A run that was stopped, in whatever way, ends in the very bits of one that was not."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import small_run
from small_run import TRAIN, metrics, quiet, weights

from ahkio.__main__ import main
from ahkio.core import state
from ahkio.core.artifact import Artifact, draft_of
from ahkio.core.errors import UserError
from ahkio.core.stage import build
from ahkio.train import loop

RECIPE = "from small_run import TRAIN\n"


class KilledError(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "life.py"
    path.write_text(RECIPE)
    return path


def draft(store):
    return draft_of(store / TRAIN.name)


def checkpoint(store):
    return state.checkpoints(draft(store) / "checkpoints")[-1]


def stop_at(monkeypatch, place, name, time_to_stop, store, stage=TRAIN):
    """Build until the function `name` of `place` has been called so often, then stop in its next call."""
    real, calls = getattr(place, name), []

    def stopping(*arguments, **options):
        calls.append(name)
        if len(calls) > time_to_stop:
            raise KilledError
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, stopping)
        with pytest.raises(KilledError):
            build(stage, store, quiet)


def same_run(made, unbroken):
    assert weights(made.path) == weights(unbroken.path)
    assert metrics(made.path) == metrics(unbroken.path)
    for fact in ("ledger", "bits_per_byte", "trained_tokens", "loss_first", "loss_last"):
        assert made.facts[fact] == unbroken.facts[fact]


def refusal(recipe, store, capsys):
    """What `ahkio build` says when it exits with 2, leaving nothing that looks finished."""
    capsys.readouterr()
    assert main(["build", str(recipe), "--runs", str(store.parent)]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ahkio:")]
    assert not (store / TRAIN.name).exists()
    return said


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 7])
def test_a_run_stopped_between_steps_goes_on_to_the_bit(unbroken, store, monkeypatch, steps):
    stop_at(monkeypatch, loop, "train_step", steps, store)
    assert lines(store) == steps
    made = build(TRAIN, store, quiet)
    same_run(made, unbroken)
    assert made.facts["restarts"] == (1 if steps >= 2 else 0)


@pytest.mark.parametrize(
    ("place", "name", "calls"),
    {
        "the first checkpoint's tensors": (state, "write_direct", 0),
        "a checkpoint's state": (state, "write_json", 1),
        "a checkpoint's name": (state.os, "replace", 3),
        "the sweeping of old checkpoints": (state, "checkpoints", 2),
        "the last weights": (loop, "save_model", 0),
    }.values(),
)
def test_a_run_stopped_while_saving_goes_on_to_the_bit(unbroken, store, monkeypatch, place, name, calls):
    stop_at(monkeypatch, place, name, calls, store)
    made = build(TRAIN, store, quiet)
    same_run(made, unbroken)
    assert [path.name for path in (made.path / "checkpoints").iterdir()] == ["step-00000008"]


def test_training_goes_on_while_a_checkpoint_is_written(unbroken, store, monkeypatch):
    write = state.write_direct

    def late(path, *image):
        saved = int(path.parent.name[5:13])
        assert wait_until(lambda: lines(store) >= min(saved + 2, 8))
        write(path, *image)

    monkeypatch.setattr(state, "write_direct", late)
    same_run(build(TRAIN, store, quiet), unbroken)


def test_a_checkpoint_that_can_not_be_written_ends_the_run_with_the_reason(unbroken, store, monkeypatch):
    def full(*image):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "write_direct", full)
        with pytest.raises(OSError, match="No space left"):
            build(TRAIN, store, quiet)
    assert lines(store) < 8
    assert finished_steps(store) == []
    same_run(build(TRAIN, store, quiet), unbroken)


def test_a_run_stopped_again_and_again_goes_on_to_the_bit(unbroken, store, monkeypatch):
    for steps in (3, 2, 3):
        stop_at(monkeypatch, loop, "train_step", steps, store)
    made = build(replace(TRAIN, save_every=3), store, quiet)
    same_run(made, unbroken)
    assert [line["step"] for line in metrics(made.path)] == list(range(8))


def test_settings_of_how_may_change_on_the_way(unbroken, store, monkeypatch):
    stop_at(monkeypatch, loop, "train_step", 5, store)
    made = build(replace(TRAIN, recompute="block", save_every=0, measure_every=3), store, quiet)
    assert weights(made.path) == weights(unbroken.path)


# ---------------------------------------------------------------------------------------------------------------------
# Processes that are killed


def started(recipe, store, *overrides):
    command = [sys.executable, "-m", "ahkio", "build", str(recipe), "--runs", str(store.parent), *overrides]
    path = os.pathsep.join([str(Path(small_run.__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )


def wait_until(happened, process=None):
    """Whether `happened` came true before the process, if one is given, ended; a minute at most."""
    end = time.monotonic() + 60
    while (process is None or process.poll() is None) and time.monotonic() < end:
        if happened():
            return True
        time.sleep(0.0005)
    return False


def lines(store):
    path = draft(store) / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def finished_steps(store):
    return [int(path.name[5:]) for path in state.checkpoints(draft(store) / "checkpoints")]


def test_a_run_killed_at_any_moment_goes_on_to_the_bit(unbroken, store, recipe):
    dice = random.Random()
    moments = [
        lambda: lines(store) >= 1,
        lambda: any((draft(store) / "checkpoints").glob("*.tmp")) and max(finished_steps(store), default=0) >= 1,
        lambda: max(finished_steps(store), default=0) >= 4 and (time.sleep(dice.random() / 10) or True),
        lambda: (draft(store) / "model").exists(),
    ]
    killed = 0
    for moment in moments:
        process = started(recipe, store, "train.save_every=1", "train.objective.pause=0.02")
        if wait_until(moment, process):
            process.kill()
            killed += 1
        _, said = process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGKILL, 0), said
    assert killed >= 3
    same_run(build(TRAIN, store, quiet), unbroken)


def test_ctrl_c_saves_and_the_same_command_goes_on(unbroken, store, recipe):
    process = started(recipe, store, "train.save_every=0", "train.objective.pause=0.2")
    assert wait_until(lambda: lines(store) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    (saved,) = finished_steps(store)
    assert 2 <= saved == lines(store) < 8
    assert TRAIN.progress(draft(store)) == f"{saved} of 8 steps"
    made = build(TRAIN, store, quiet)
    same_run(made, unbroken)
    assert made.facts["restarts"] == 1


def test_a_stop_asked_for_saves_where_nothing_was_due(store, monkeypatch):
    answers = iter([None, KeyboardInterrupt])
    monkeypatch.setattr(loop, "asked_to_stop", lambda _: contextlib.nullcontext(lambda: next(answers)))
    with pytest.raises(KeyboardInterrupt):
        build(replace(TRAIN, save_every=0), store, quiet)
    assert finished_steps(store) == [lines(store)]


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints that are not this run's


@pytest.fixture
def stopped(store, monkeypatch):
    """A store with a run stopped after step 5, whose last checkpoint is of step 4."""
    stop_at(monkeypatch, loop, "train_step", 5, store)
    assert checkpoint(store).name == "step-00000004"
    return store


def test_a_torn_checkpoint_is_refused_by_the_name_of_its_file(stopped, recipe, capsys):
    (path,) = checkpoint(stopped).glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = refusal(recipe, stopped, capsys)
    assert path.name in said
    assert "damaged" in said
    assert str(checkpoint(stopped)) in said


def test_a_checkpoint_that_lacks_a_file_is_refused(stopped, recipe, capsys):
    (path,) = checkpoint(stopped).glob("*.safetensors")
    path.unlink()
    assert path.name in refusal(recipe, stopped, capsys)


def test_a_torn_state_is_refused(stopped, recipe, capsys):
    path = checkpoint(stopped) / state.STATE
    path.write_text(path.read_text()[:-50])
    assert "is torn" in refusal(recipe, stopped, capsys)


def test_a_foreign_checkpoint_is_refused_by_the_field_that_differs(store, recipe, capsys, monkeypatch):
    other = replace(TRAIN, schedule=replace(TRAIN.schedule, peak=5e-3))
    stop_at(monkeypatch, loop, "train_step", 5, store, other)
    shutil.copytree(draft_of(store / other.name), draft(store))
    said = refusal(recipe, store, capsys)
    assert "of another run" in said
    assert "its schedule.peak is 0.005, here it is 0.01;" in said
    assert "--accept" in said


def test_a_change_that_is_accepted_is_recorded_and_the_run_goes_on(store, recipe, capsys, monkeypatch):
    other = replace(TRAIN, schedule=replace(TRAIN.schedule, peak=5e-3))
    stop_at(monkeypatch, loop, "train_step", 5, store, other)
    before = [line["lr"] for line in metrics(draft_of(store / other.name))][:4]
    assert main(["build", str(recipe), "--runs", str(store.parent), "--accept"]) == 0
    made = Artifact(store / TRAIN.name)
    assert made.facts["accepted"] == [{"field": "schedule.peak", "old": 5e-3, "new": 1e-2, "step": 4}]
    assert made.facts["continued"] == [{"run": other.name, "step": 4}]
    assert [line["lr"] for line in metrics(made.path)][:4] == before
    assert metrics(made.path)[4]["lr"] == TRAIN.schedule.lr(4, 8)
    saved = state.read_state(next((made.path / "checkpoints").iterdir()))
    assert saved["accepted"] == made.facts["accepted"]


def test_a_change_that_was_accepted_once_is_not_asked_about_again(unbroken, store, recipe, monkeypatch):
    other = replace(TRAIN, schedule=replace(TRAIN.schedule, peak=5e-3))
    stop_at(monkeypatch, loop, "train_step", 3, store, other)
    stop_at(monkeypatch, loop, "train_step", 3, store, replace(TRAIN, accept=True))
    made = build(TRAIN, store, quiet)
    (change,) = made.facts["accepted"]
    assert (change["field"], change["step"]) == ("schedule.peak", 2)
    assert made.facts["ledger"] == unbroken.facts["ledger"]
    assert made.facts["restarts"] == 1


def test_rows_that_were_not_the_plans_are_refused_even_so(stopped, recipe, capsys):
    path = checkpoint(stopped) / state.STATE
    saved = json.loads(path.read_text())
    saved["ledger"]["fi"]["rows"] += 1
    path.write_text(json.dumps(saved))
    capsys.readouterr()
    assert main(["build", str(recipe), "--runs", str(stopped.parent), "--accept"]) == 2
    assert "source 'fi'" in capsys.readouterr().err


def test_the_newest_checkpoints_are_kept_and_those_of_every_so_many_steps(unbroken, store):
    made = build(replace(TRAIN, save_every=1, keep=2, keep_every=3), store, quiet)
    same_run(made, unbroken)
    kept = sorted(path.name for path in (made.path / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (3, 6, 7, 8)]


def test_a_ledger_that_is_not_the_plans_is_refused(stopped, recipe, capsys):
    path = checkpoint(stopped) / state.STATE
    saved = json.loads(path.read_text())
    saved["ledger"]["fi"]["rows"] += 1
    path.write_text(json.dumps(saved))
    said = refusal(recipe, stopped, capsys)
    assert "source 'fi'" in said
    assert "not the same run" in said


def test_a_half_written_checkpoint_is_passed_over(unbroken, stopped):
    torn = draft(stopped) / "checkpoints" / "step-00000005.tmp"
    shutil.copytree(checkpoint(stopped), torn)
    (torn / state.STATE).write_text("{")
    made = build(TRAIN, stopped, quiet)
    same_run(made, unbroken)
    assert [path.name for path in (made.path / "checkpoints").iterdir()] == ["step-00000008"]


def test_a_refused_run_goes_on_once_the_checkpoint_is_moved_away(unbroken, stopped):
    path = checkpoint(stopped) / state.STATE
    path.write_text("{}")
    with pytest.raises(UserError, match="torn"):
        build(TRAIN, stopped, quiet)
    shutil.rmtree(path.parent)
    same_run(build(TRAIN, stopped, quiet), unbroken)
    assert Artifact(stopped / TRAIN.name).facts["restarts"] == 0
