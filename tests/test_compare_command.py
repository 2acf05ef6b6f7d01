"""`ahkio compare` on artifacts written by hand: what is compared, what is refused, and what is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from ahkio.__main__ import main
from ahkio.core.artifact import create

RECIPE = """
from dataclasses import dataclass
from pathlib import Path

from ahkio.core.stage import Stage
from ahkio.evaluate.evaluate import write_items

@dataclass(frozen=True, kw_only=True)
class Asked(Stage):
    hits: int
    def run(self, out, inputs):
        write_items(out, "choice", [{"item": i, "hash": str(i), "acc": float(i < self.hits)} for i in range(100)])
        return {"bits_per_byte": {}, "tasks": {"choice": {"metrics": {"acc": self.hits / 100}}}, "samples": []}

BEFORE = Asked(hits=40)
AFTER = Asked(hits=60)
"""
FEW = range(0, 30)


def evaluation(folder: Path, hits: int = 20, items: range = range(100), tasks: str = "choice", **what: Any) -> str:
    """An evaluation of `tasks` in which the first items are right, and of one held-out set."""
    with create(folder, keep_draft=False) as (draft, manifest):
        (draft / "items").mkdir()
        for task in tasks.split():
            rows = [{"item": i, "hash": f"{task} {i}", "acc": float(i < hits)} for i in items]
            (draft / f"items/{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        documents = [{"document": i, "nats": 700.0 + (i * 37) % 90 - hits, "bytes": 1000} for i in range(20)]
        text = "".join(json.dumps(row) + "\n" for row in documents)
        (draft / "items/bits_per_byte.fi.jsonl").write_text(text)
        facts = {"bits_per_byte": {"fi": {}}, "samples": [], "missing": what.pop("missing", {})}
        facts["tasks"] = {task: {"metrics": {"acc": hits / 100}, "shots": 0} for task in tasks.split()}
        manifest |= {"stage": "Evaluate", "facts": facts, "inputs": {}}
        manifest["what"] = {"heldout": [], "bos": True} | what
    return str(folder)


def training(folder: Path, last: float, text: str = "tokens-1", steps: int = 40, **what: Any) -> str:
    with create(folder, keep_draft=False) as (draft, manifest):
        lines = [{"step": step, "loss": last + 1 / (1 + step)} for step in range(steps)]
        (draft / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        curves = {"fi": [[0, 2.5], [steps, last]], folder.name: [[0, 1.0]]}
        manifest |= {
            "stage": "Train",
            "facts": {"bits_per_byte": curves, "ledger": {}, "loss_last": last},
            "inputs": {},
        }
        held = [{"is": "HeldOut", "name": name, "tokens": text} for name in curves]
        manifest["what"] = {"heldout": held, "mix": {"seed": 1}, "rows": {"length": 8}, "steps": steps} | what
    return str(folder)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["compare", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["compare", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_two_evaluations_become_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    before, after = evaluation(tmp_path / "a", 20), evaluation(tmp_path / "b", 50)
    bits, accuracy = told(capsys, before, after)["rows"]
    assert (bits["test"], bits["verdict"], bits["items"]) == ("paired bootstrap", "better", 20)
    assert (accuracy["test"], accuracy["before"], accuracy["after"]) == ("McNemar", 20, 50)
    assert accuracy["p"] == pytest.approx(4.3e-8, rel=0.1)
    assert bits["p_adjusted"] == pytest.approx(max(2 * min(bits["p"], accuracy["p"]), max(bits["p"], accuracy["p"])))
    assert accuracy["items_needed"] == pytest.approx(23_500, rel=0.01)
    assert main(["compare", before, after]) == 0
    shown = capsys.readouterr().out
    for words in ("choice (acc)", "+30.00 points", "<0.001", "better", "2 tests", "80% of the time"):
        assert words in shown
    assert told(capsys, before, after) == told(capsys, before, after)


def test_stages_of_a_recipe_are_compared_with_its_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("life.py").write_text(RECIPE)
    for words in (["life.py:BEFORE"], ["life.py:AFTER"], ["life.py:AFTER", "after.hits=90"]):
        assert main(["build", *words]) == 0
    capsys.readouterr()
    sides = ("life.py:BEFORE", "life.py:AFTER")
    assert told(capsys, *sides)["rows"][0]["change"] == pytest.approx(20)
    assert told(capsys, *sides, "after.hits=90")["rows"][0]["change"] == pytest.approx(50)
    assert "is not built here" in refusal(capsys, *sides, "after.hits=91")


def test_items_that_differ_are_refused_with_their_number_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = evaluation(tmp_path / "a", 5), evaluation(tmp_path / "b", 25, items=FEW)
    said = refusal(capsys, before, after)
    assert "choice: a and b did not measure the same items (30 of 100 and 30 match)" in said
    assert "--common" in said
    _, row = told(capsys, before, after, "--common")["rows"]
    assert (row["items"], row["before"], row["after"]) == (30, pytest.approx(100 / 6), pytest.approx(250 / 3))


def test_held_out_sets_of_one_name_and_other_text_are_not_paired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [
        evaluation(tmp_path / name, heldout=[{"is": "HeldOut", "name": "fi", "tokens": f"tokens-{name}"}])
        for name in "ab"
    ]
    assert "fi: a and b did not measure the same items (0 of 20 and 20 match)" in refusal(capsys, *sides)
    for name, tokenizer in {"a": "import-1", "b": "import-2"}.items():
        with create(tmp_path / f"tokens-{name}", keep_draft=False) as (_, manifest):
            manifest["what"] = {"corpus": "corpus-1", "domain": "fi", "side": "heldout", "tokenizer": tokenizer}
    assert told(capsys, *sides)["rows"][0]["items"] == 20  # the same text, encoded by two tokenizers


def test_what_one_side_lacks_is_missing_and_no_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = evaluation(tmp_path / "a", tasks="choice arc")
    after = evaluation(tmp_path / "b", missing={"arc": "no such dataset", "gsm8k": "no network"})
    found = told(capsys, before, after)
    assert [row["set"] for row in found["rows"]] == ["fi", "choice"]
    assert found["missing"] == [
        {"kind": "task", "set": "arc", "why": "no such dataset"},
        {"kind": "task", "set": "gsm8k", "why": "not measured by a"},
    ]
    assert main(["compare", before, after]) == 0
    assert "Missing: arc: no such dataset." in capsys.readouterr().out


def test_a_metric_without_figures_of_its_items_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [evaluation(tmp_path / name) for name in "ab"]
    manifest = json.loads((tmp_path / "b/manifest.json").read_text())
    manifest["facts"]["tasks"]["choice"]["metrics"]["f1"] = 0.5
    (tmp_path / "b/manifest.json").write_text(json.dumps(manifest))
    assert told(capsys, *sides)["missing"] == [
        {"kind": "task", "set": "choice (f1)", "why": "not in the items of both"}
    ]


def test_settings_that_differ_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = evaluation(tmp_path / "a"), evaluation(tmp_path / "b", bos=False, preset={"name": "2025"})
    assert told(capsys, before, after)["settings"] == {"bos": ["true", "false"], "preset.name": ["", "2025"]}
    assert main(["compare", before, after]) == 0
    assert "Not the same: bos: true before, false after." in capsys.readouterr().out


def test_two_trainings_are_told_without_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = training(tmp_path / "a", 2.0), training(tmp_path / "b", 1.8, steps=20)
    found = told(capsys, before, after)
    bits, loss = found["rows"]
    assert (bits["set"], bits["change"], bits["verdict"]) == ("fi", pytest.approx(-10), "not tested")
    assert (bits["interval"], bits["p"]) == (None, None)
    assert loss["metric"] == "loss, 1 step(s) to 20"
    assert (loss["before"], loss["after"]) == (pytest.approx(2.05), pytest.approx(1.85))
    assert [one["set"] for one in found["missing"]] == ["a", "b"]
    assert found["same_batches"] is True
    assert found["settings"] == {"steps": ["40", "20"]}
    assert main(["compare", before, after]) == 0
    assert "not tested" in capsys.readouterr().out


def test_trainings_that_measured_other_text_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = training(tmp_path / "a", 2.0), training(tmp_path / "b", 1.8, text="tokens-2")
    assert "fi: a and b did not measure the same text" in refusal(capsys, before, after)
    found = told(capsys, before, after, "--common")
    assert [row["kind"] for row in found["rows"]] == ["loss"]
    assert "did not measure the same text" in found["missing"][0]["why"]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_both_kinds_are_drawn(tmp_path: Path, suffix: str) -> None:
    sides = [evaluation(tmp_path / name, hits) for name, hits in (("a", 20), ("b", 50))]
    runs = [training(tmp_path / name, last) for name, last in (("c", 2.0), ("d", 1.8))]
    for kind, pair in {"evaluations": sides, "trainings": runs}.items():
        file = tmp_path / f"{kind}.{suffix}"
        assert main(["compare", *pair, "--plot", str(file)]) == 0
        assert file.stat().st_size > 1000


def test_what_cannot_be_compared_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, trained = evaluation(tmp_path / "a"), training(tmp_path / "b", 2.0)
    assert "a is of Evaluate and b is of Train" in refusal(capsys, asked, trained)
    assert "can't be written" in refusal(capsys, asked, asked, "--plot", str(tmp_path / "no" / "x.png"))
    assert "There is no recipe 'nowhere'" in refusal(capsys, "nowhere", asked)
