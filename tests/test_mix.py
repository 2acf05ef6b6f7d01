"""What a user who asks for a mix types, and what comes of it."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ahkio.__main__ import main
from ahkio.core import machine
from ahkio.core.artifact import Artifact

RECIPE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from dataclasses import replace
import small_run
from ahkio.tokens.mixture import Mix

SEVERAL = small_run.TRAIN
ONE = replace(SEVERAL.mix.segments[1], shares=SEVERAL.mix.segments[1].shares[:1])
CORPUS = small_run.SmallCorpus()
BLIND = replace(SEVERAL, mix=Mix(segments=SEVERAL.mix.segments[1:]), heldout=SEVERAL.heldout[:1])
SINGLE = replace(SEVERAL, mix=Mix(segments=(ONE,)))
TRAIN = replace(SEVERAL, mix=Mix(segments=SEVERAL.mix.segments[1:]), steps=40)
"""
WORDS = ("mix", "small.py", "--mixes", "5", "--steps", "4", "--limit", "5%")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AHKIO_RUNS", raising=False)
    monkeypatch.setattr(machine, "peak_flops", lambda *_: (1e12, "stated"))
    Path("small.py").write_text(RECIPE)


def made():
    return {path.name: path.stat().st_mtime_ns for path in Path("runs/artifacts").iterdir() if path.is_dir()}


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """A folder in which mixes have been tried, and what the command said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "peak_flops", lambda *_: (1e12, "stated"))
        patch.chdir(tmp_path_factory.mktemp("tried"))
        Path("small.py").write_text(RECIPE)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert main([*WORDS, "--check"]) == 0
        yield Path.cwd(), said.getvalue()


@pytest.fixture
def again(tried, monkeypatch, capsys):
    """The same command, with JSON; and what it found."""
    monkeypatch.chdir(tried[0])
    before = made()
    assert main([*WORDS, "--check", "--json"]) == 0
    assert made() == before  # nothing is done twice
    return json.loads(capsys.readouterr().out)


def test_a_mix_is_recommended_from_runs_that_are_kept(again, tried):
    assert "Mix 5 of 5, fi " in tried[1]
    assert list(again["sets"]) == again["sources"] == ["fi", "en"]
    assert again["runs"][0]["weights"] == {"fi": 1, "en": 3}
    for row in again["runs"]:
        facts = Artifact(Path("runs/artifacts") / row["run"]).facts
        assert facts["steps"] == 4
        assert {k: [0, v] for k, v in again["base"].items()} == {k: v[0] for k, v in facts["bits_per_byte"].items()}
        assert row["bits_per_byte"] == {k: v[-1][1] for k, v in facts["bits_per_byte"].items()}
        total = sum(row["weights"].values())
        assert row["shares"] == pytest.approx({k: v / total for k, v in row["weights"].items()}, abs=1 / 24)


def test_the_recommended_mix_is_trained_and_compared(again):
    checked = again["checked"]
    made = Artifact(Path("runs/artifacts") / checked["run"])
    shares = made.manifest["what"]["mix"]["segments"][0]["shares"]
    assert {share["name"]: share["weight"] for share in shares} == again["recommended"]["weights"]
    assert checked["bits_per_byte"] == {k: v[-1][1] for k, v in made.facts["bits_per_byte"].items()}
    for name, told in checked["predicted"].items():
        assert told["interval"][0] <= told["bits_per_byte"] <= told["interval"][1]
        assert checked["change"][name] == pytest.approx(
            100 * (checked["bits_per_byte"][name] / again["base"][name] - 1)
        )


def test_the_line_to_paste_makes_the_very_run_that_was_checked(again, capsys):
    assert main([*WORDS, "--check"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("To take it: ahkio ")]
    command = line.removeprefix("To take it: ahkio ").split()
    assert main([*command, "train.steps=4", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)["TRAIN"]
    assert (entry["artifact"], entry["existed"]) == (again["checked"]["run"], True)


def test_a_mixing_is_shown_with_its_lineage(again, capsys):
    assert main(["show", "runs/small/mixing", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in record["lineage"]].count("Train") == 5
    assert record["facts"]["limit"] == 5.0


def test_the_same_command_goes_on_after_ctrl_c(recipe):
    command = [sys.executable, "-m", "ahkio", *WORDS, "train.objective.pause=0.05"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ)
    while not [path for path in Path().glob("runs/artifacts/train-*") if (path / "manifest.json").is_file()]:
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "goes on: ahkio mix small.py:TRAIN train.objective.pause=0.05 --mixes 5 --steps 4" in said
    first = {name: when for name, when in made().items() if not name.endswith(".draft")}
    assert main([*WORDS]) == 0
    assert {name: made()[name] for name in first} == first
    assert Path("runs/small/mixing/manifest.json").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["small.py:SEVERAL"], "The mix has 2 segments"),
        (["small.py:SINGLE"], "The mix has 1 sources"),
        (["small.py:BLIND"], "There is no held-out set of en"),
        (["small.py:CORPUS"], "has no training in its lineage"),
        (["small.py", "--mixes", "2"], "2 mixes can't settle 2 coefficients"),
        (["small.py", "--mixes", "50"], "50 mixes are more than there are"),
        (["small.py", "--steps", "3"], "take at least 4 steps"),
        (["small.py", "--target", "sv"], "There is no held-out set 'sv' to gain; the training has: fi, en."),
        (["small.py", "--limit", "little"], "--limit little: give a change"),
        (["small.py", "--seed=-1"], "--seed -1: give a whole number"),
        (["small.py", "--steps", "60"], "max_epochs"),
    ],
)
def test_what_cannot_be_tried_is_one_sentence_before_any_run(recipe, capsys, words, sentence):
    assert main(["mix", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ahkio:")]
    assert sentence in line
    assert not list(Path().glob("runs/artifacts/train-*"))
