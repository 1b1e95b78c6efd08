"""history.plot: what is in the picture, in every odd case, and that nothing global is touched."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra plot: pip install 'fastloop[plot]'")

import fastloop as fl
from fastloop import plot


def make(n=1000, loss=None, **columns):
    rng = np.random.default_rng(n)
    history = fl.History()
    norm = rng.random(n) + 0.5
    recorded = {
        "loss": 2.0 + rng.random(n) if loss is None else loss, "lr": 0.01 * (1.0 - np.arange(n) / n), "norm": norm,
        "clipped": norm > 1.2, "seconds": np.arange(n),
    }
    history.extend(**recorded | columns)
    return history


def lines(ax):
    return {line.get_label().split(",")[0]: line for line in ax.lines}


def test_everything_is_in_the_picture():
    history = make()
    history.evaluations = [(0, 3.3), (500, 2.5), (1000, 2.4)]
    loss, norm, lr = history.plot(baseline=2.385).axes
    assert [ax.get_ylabel() for ax in (loss, norm, lr)] == ["loss", "gradient norm", "learning rate"]
    assert lr.get_xlabel() == "step"

    drawn = lines(loss)
    assert list(drawn) == ["each step", "mean of 50 steps", "validation", "baseline 2.385"]
    np.testing.assert_array_equal(drawn["each step"].get_xdata(), np.arange(1, 1001))
    np.testing.assert_array_equal(drawn["each step"].get_ydata(), history.loss)
    smooth = drawn["mean of 50 steps"]
    np.testing.assert_array_equal(smooth.get_ydata(), history.smoothed(50))
    assert smooth.get_xdata()[-1] == np.arange(951, 1001).mean()
    assert smooth.get_label().endswith(f"last {history.smoothed(50)[-1]:.4g}")
    np.testing.assert_array_equal(drawn["validation"].get_xydata(), history.evaluations)
    assert list(drawn["baseline 2.385"].get_ydata()) == [2.385, 2.385]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [line.get_label() for line in loss.lines]

    drawn = lines(norm)
    assert list(drawn) == ["before clipping", "clipped"]
    assert norm.get_yscale() == "log"
    clipped = np.flatnonzero(history.clipped)
    np.testing.assert_array_equal(drawn["clipped"].get_xdata(), clipped + 1)
    np.testing.assert_array_equal(drawn["clipped"].get_ydata(), history.norm[clipped])
    assert drawn["clipped"].get_color() == plot.ORANGE
    assert drawn["clipped"].get_label() == f"clipped, {len(clipped) / 1000:.1%} of the steps"

    np.testing.assert_array_equal(lr.lines[0].get_ydata(), history.lr)
    assert lr.get_ylim()[0] == 0.0


def test_what_was_not_recorded_has_no_panel():
    nan = np.full(50, np.nan)
    assert [ax.get_ylabel() for ax in make(50, norm=nan, lr=nan).plot().axes] == ["loss"]
    assert [ax.get_ylabel() for ax in make(50, lr=nan).plot().axes] == ["loss", "gradient norm"]


@pytest.mark.parametrize("loss, scale", [(np.linspace(3.3, 2.2, 50), "linear"), (np.geomspace(100, 1e-3, 50), "log"),
                                         (np.linspace(100, 0, 50), "linear"), (np.linspace(5, -5, 50), "linear")])
def test_the_scale_of_the_loss(loss, scale, tmp_path):
    assert make(50, loss).plot(tmp_path / "x.png").axes[0].get_yscale() == scale


@pytest.mark.parametrize("ending, magic", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_file(ending, magic, tmp_path):
    path = tmp_path / f"loss.{ending}"
    make().plot(path, baseline=2.4)
    assert path.read_bytes().startswith(magic)
    assert path.stat().st_size > 5000
    make().plot(str(path))


@pytest.mark.parametrize("history", [
    make(1), make(2), make(19), make(50, loss=np.full(50, np.nan)), make(50, loss=np.full(50, np.inf)),
    make(50, loss=np.r_[np.geomspace(1, 1e300, 49), np.inf]), make(50, norm=np.zeros(50)), make(50, lr=np.zeros(50)),
    make(50, clipped=np.ones(50, bool)),
], ids=range(9))
def test_odd_runs_can_be_drawn(history, tmp_path):
    history.plot(tmp_path / "x.png")
    history.evaluations = [(0, np.nan), (5, np.inf), (70, 1.0)]
    figure = history.plot(tmp_path / "x.png", baseline=2.0)
    assert figure.axes[0].get_xlim() == (0, 70)


def test_a_history_without_steps():
    with pytest.raises(ValueError, match="no steps"):
        fl.History().plot()


def test_a_figure_of_ones_own(tmp_path):
    figure = plot.Figure(figsize=(8, 4))
    left, right = figure.subfigures(1, 2)
    assert make(50).plot(figure=left) is left
    make(50).plot(figure=right)
    assert len(figure.axes) == 6
    make(50).plot(tmp_path / "both.png", figure=plot.Figure())
    assert (tmp_path / "both.png").exists()


@pytest.mark.parametrize("n", [4001, 99_999, 1_000_000])
def test_long_lines_keep_their_extremes(n):
    x, y = np.arange(n), np.random.default_rng(n).normal(size=n)
    y[n // 3], y[n // 2], y[n - 1] = 99.0, -99.0, np.nan
    thin_x, thin_y = plot._thinned(x, y)
    assert len(thin_x) <= 2 * plot.POINTS
    assert (np.diff(thin_x) > 0).all()
    np.testing.assert_array_equal(thin_y, y[thin_x])
    width = -(-n // plot.POINTS)
    for first in range(0, n - 2 * width, n // 50):      # some window that holds a whole segment
        inside = (thin_x >= first) & (thin_x < first + 2 * width)
        assert inside.sum() >= 2
    assert (thin_y.max(), thin_y.min()) == (99.0, -99.0)


def test_many_clipped_steps_are_thinned(tmp_path):
    history = make(100_000, clipped=np.ones(100_000, bool))
    figure = history.plot(tmp_path / "x.png")
    assert len(lines(figure.axes[1])["clipped"].get_xdata()) <= plot.POINTS
    assert lines(figure.axes[1])["clipped"].get_label() == "clipped, 100.0% of the steps"


def test_nothing_global_is_touched(tmp_path):
    code = (
        "import sys, fastloop as fl; h = fl.History(); [h.append(1.0 / (i + 1)) for i in range(30)]\n"
        "import matplotlib; before = dict(matplotlib.rcParams); h.plot('x.png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules; assert dict(matplotlib.rcParams) == before"
    )
    path = {"PYTHONPATH": str(Path(plot.__file__).parents[1]), "MPLBACKEND": "tkagg"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path, env=path)
    assert (tmp_path / "x.png").exists()
