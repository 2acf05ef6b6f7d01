from pathlib import Path

import matplotlib
import pytest

from ahkio.core.errors import UserError
from ahkio.release.plots import plot_bits_per_byte, plot_loss, read_losses, smooth

CURVE = [(1000 * step, 4 - step / 50) for step in range(1, 41)]


def test_both_figures_come_as_png_and_svg_with_units_on_their_axes(tmp_path: Path) -> None:
    loss = plot_loss(CURVE, tmp_path)
    bits = plot_bits_per_byte({"fi": CURVE, "code": CURVE}, tmp_path)
    assert [file.name for file in loss + bits] == ["loss.png", "loss.svg", "bits_per_byte.png", "bits_per_byte.svg"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (loss[0], bits[0]))
    assert "loss (nats per token)" in loss[1].read_text()
    assert "tokens seen" in bits[1].read_text()
    assert "bits per byte (lower is better)" in bits[1].read_text()


def test_drawing_leaves_the_style_of_others_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plot_loss(CURVE, tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_the_same_curve_gives_the_same_figure(tmp_path: Path) -> None:
    first, second = plot_loss(CURVE, tmp_path / "a"), plot_loss(CURVE, tmp_path / "b")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_a_step_logged_again_after_a_restart_counts_once(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 4.0}\n{"step": 2, "loss": 9.0}\n{"step": 2, "loss": 3.5}\n{"step": 3}\n')
    assert read_losses(metrics, tokens_per_step=100) == [(100, 4.0), (200, 3.5)]


@pytest.mark.parametrize("content", [None, "", "{", '{"step": 1}\n'])
def test_metrics_without_a_loss_are_a_sentence(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        read_losses(tmp_path / "metrics.jsonl", 100)


def test_smoothing_keeps_a_level_and_does_not_trail_behind_a_slope() -> None:
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    slope = [float(step) for step in range(100)]
    assert smooth(slope)[10:90] == pytest.approx(slope[10:90])
