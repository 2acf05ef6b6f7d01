import io
import json
from pathlib import Path

import pytest
from life import Life, a_life
from rich.console import Console

from ahkio.core.artifact import Artifact, create
from ahkio.core.errors import UserError
from ahkio.core.stage import Stage
from ahkio.release.summary import Promise, Summary, show_summary


def with_a_card(life: Life) -> dict[Stage, Artifact]:
    life.facts["Card"] = {"location": "runs/tiny/model", "title": "Tiny Finnish"}
    return life.write()


def summary_of(life: Life, *promises: Promise) -> Summary:
    return Summary(card=life.stage("Card"), comparison=life.stage("Compare"), promises=promises)


def test_the_summary_holds_before_after_interval_and_cost(tmp_path: Path) -> None:
    life = a_life(tmp_path / "store")
    facts = summary_of(life, Promise(set="fi", at_most=-10.0)).run(tmp_path, with_a_card(life))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["before"] == {"fi": 2.53, "code": 0.93}
    assert summary["after"] == {"fi": 2.03, "code": 0.933}
    assert summary["interval"]["fi"] == pytest.approx([-20.51, -19.01])
    assert [row["metric"] for row in summary["tasks"]] == ["acc", "chrf"]
    assert summary["promises"] == [{"set": "fi", "at_most": -10.0, "change": -19.76, "kept": True}]
    assert summary["seconds"] == 80.0  # eight stages of ten seconds, each counted once
    assert summary["peak_memory_bytes"] == 2 * 2**30
    assert facts["promises"] == summary["promises"]


def test_a_broken_promise_names_its_figure_and_leaves_nothing(tmp_path: Path) -> None:
    life = a_life(tmp_path / "store")
    stage = summary_of(life, Promise(set="fi", at_most=-10.0), Promise(set="code", at_most=0.1))
    inputs = with_a_card(life)
    with pytest.raises(UserError, match=r"code \+0\.32% \(at most \+0\.1%\).*lower the peak learning rate") as caught:
        stage.run(tmp_path, inputs)
    assert "fi -19.76" not in str(caught.value)
    assert not (tmp_path / "summary.json").exists()


def test_a_promise_is_kept_at_its_bound(tmp_path: Path) -> None:
    life = a_life(tmp_path / "store")
    facts = summary_of(life, Promise(set="code", at_most=0.32)).run(tmp_path, with_a_card(life))
    assert facts["promises"][0]["kept"]


def test_a_promise_about_a_set_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    life = a_life(tmp_path / "store")
    inputs = with_a_card(life)
    with pytest.raises(UserError, match=r"names the set 'sv'.*it has: fi, code"):
        summary_of(life, Promise(set="sv", at_most=0.0)).run(tmp_path, inputs)


def test_the_terminal_shows_figures_voices_and_places(tmp_path: Path) -> None:
    life = a_life(tmp_path / "store")
    inputs = with_a_card(life)
    with create(tmp_path / "store" / "summary-1", keep_draft=False) as (draft, _):
        summary_of(life, Promise(set="fi", at_most=-10.0)).run(draft, inputs)
    console = Console(file=io.StringIO(), width=120)
    show_summary(tmp_path / "store" / "summary-1", console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for text in ("2.530", "-19.76 %", "-20.51 to -19.01", "no difference shown", "[red]on kaunis", "1 min 20 s"):
        assert text in shown
    card = tmp_path / "store" / life.stage("Card").name
    assert f"{card}/README.md" in shown  # no folder of the card's location here: the artifact itself is named
    assert f"{tmp_path}/store/summary-1/summary.json" in shown
