"""Draws a History with matplotlib (extra: plot).  Import it only to draw, as matplotlib is slow to import.

Nothing global is touched: no pyplot, no backend, no display.
"""

from __future__ import annotations

import io
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checkpoint, extras
from .history import with_ending

if TYPE_CHECKING:
    from ._types import Array, Floats, Path
    from .history import History

Figure: Any = extras.load("matplotlib.figure", "plot", "a picture of the run").Figure
FigureCanvasAgg: Any = extras.load("matplotlib.backends.backend_agg", "plot", "a picture of the run").FigureCanvasAgg
ticker: Any = extras.load("matplotlib.ticker", "plot", "a picture of the run")

# Of the colours of Okabe and Ito, which the colour-blind can tell apart; line styles and marks differ as well.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#555555"
POINTS = 2000       # drawn of a line: more than a picture has columns, however long the run
LOG_LIMIT = 575.0   # natural logarithm of 1e250, past which nothing is shown
WIDE_RANGE = 30.0   # largest over smallest, from which a logarithmic scale shows more of a loss


def plot(
    history: History, path: Path | None = None, baseline: float | None = None, figure: Any = None
) -> Any:
    """Draw the loss (each step light, smoothed strong), the gradient norm and the learning rate over the steps.

    path: a file to write, whole or not at all, its format by its ending (png, svg, pdf; without one it gets .png); None
    writes none.  baseline: a loss to compare with, drawn as a line: the bigram count model's.  figure: a matplotlib
    Figure or SubFigure to draw into; None makes one.  Evaluations are drawn where there are any, clipped steps as
    orange dots on the norm; a column that was not recorded (all NaN) gets no panel.
    Returns the figure.  Raises ImportError without matplotlib, ValueError for a history without steps.
    """
    if not len(history):
        raise ValueError("this history has no steps to draw")
    if figure is None:
        figure = Figure(figsize=(8, 6), layout="constrained")
        FigureCanvasAgg(figure)
    panels = [name for name in ("loss", "norm", "lr") if name == "loss" or np.isfinite(getattr(history, name)).any()]
    heights = {"loss": 3.2, "norm": 1.4, "lr": 1.0}
    axes = figure.subplots(
        len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": [heights[name] for name in panels]}
    )[:, 0]
    for name, ax in zip(panels, axes, strict=True):
        PANELS[name](ax, history, baseline)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_formatter("{x:,.0f}")
    axes[-1].set_xlim(0, max([len(history)] + [step for step, _ in history.evaluations]))
    figure.align_ylabels(axes)
    if path is not None:
        path = with_ending(path)
        picture = io.BytesIO()
        figure.savefig(picture, dpi=150, format=os.path.splitext(path)[1][1:].lower())
        checkpoint.atomically(path, picture.getbuffer())
    return figure


def check_format(path: str) -> None:
    """Raise ValueError for a file name whose ending is no format that can be drawn."""
    ending = os.path.splitext(path)[1][1:].lower()
    known = FigureCanvasAgg(Figure()).get_supported_filetypes()
    if ending not in known:
        raise ValueError(f"{path}: a picture cannot be drawn as {ending!r}; known are {', '.join(sorted(known))}")


def _loss(ax: Any, history: History, baseline: float | None) -> None:
    n = len(history)
    window = max(1, n // 20)
    step = np.arange(1, n + 1)
    light = {"alpha": 0.3, "linewidth": 0.7} if window > 1 else {"linewidth": 1.5, "marker": ".", "markersize": 4}
    ax.plot(*_thinned(step, history.loss), color=BLUE, label="each step", **light)
    if window > 1:
        smooth = history.smoothed(window)
        middle = step - (np.minimum(step, window) - 1) / 2      # of the steps that each mean is over: no lag
        label = f"mean of {window:,} steps, last {smooth[-1]:.4g}"
        ax.plot(*_thinned(middle, smooth), color=BLUE, linewidth=1.8, label=label)
    shown: Any = [history.loss]
    if history.evaluations:
        steps, losses = np.array(history.evaluations).T
        shown.append(losses)
        label = f"validation, last {losses[-1]:.4g}"
        # Not clipped at the frame, on which the last mark lies.
        ax.plot(steps, losses, color=GREEN, marker="o", markersize=4.5, linewidth=1.0, clip_on=False, label=label)
    if baseline is not None:
        shown.append([baseline])
        ax.axhline(baseline, color=GREY, linestyle="--", linewidth=1.2, label=f"baseline {baseline:.4g}")
    shown = np.concatenate(shown)
    shown = shown[np.isfinite(shown)]
    if shown.size and shown.min() > 0.0 and shown.max() > WIDE_RANGE * shown.min():
        _logarithmic(ax, shown)
    ax.set_ylabel("loss")
    _legend(ax)


def _norm(ax: Any, history: History, baseline: float | None) -> None:
    norm = history.norm
    step = np.arange(1, len(norm) + 1)
    ax.plot(*_thinned(step, norm), color=GREY, linewidth=0.7, label="before clipping")
    if history.clipped.any():
        clipped = np.flatnonzero(history.clipped)
        clipped = clipped[:: -(-len(clipped) // POINTS)]
        label = f"clipped, {history.clipped.mean():.1%} of the steps"
        ax.plot(step[clipped], norm[clipped], ".", color=ORANGE, markersize=4, label=label)
        _legend(ax)
    if not (norm <= 0.0).any():         # a norm of zero has no place on a logarithmic scale
        _logarithmic(ax, norm[np.isfinite(norm)])
    ax.set_ylabel("gradient norm")


def _lr(ax: Any, history: History, baseline: float | None) -> None:
    ax.plot(*_thinned(np.arange(1, len(history) + 1), history.lr), color=BLUE, linewidth=1.2)
    ax.set_ylim(bottom=0.0)
    ax.set_ylabel("learning rate")


PANELS = {"loss": _loss, "norm": _norm, "lr": _lr}


def _legend(ax: Any) -> None:
    """One line above the panel, where it hides nothing."""
    ax.legend(
        frameon=False, fontsize="small", ncols=4, loc="lower left", bbox_to_anchor=(0.01, 1.0), borderpad=0.0,
        borderaxespad=0.0, columnspacing=1.5,
    )


def _logarithmic(ax: Any, shown: Array) -> None:
    """A logarithmic scale over `shown`, whose marks are plain numbers."""
    low, high = np.log(shown.min()), np.log(shown.max())
    margin = 0.05 * (high - low) + 0.05
    # Set by hand: where a run diverged to 1e300, matplotlib's own margins and marks overflow.
    ax.set_ylim(np.exp(max(low - margin, -LOG_LIMIT)), np.exp(min(high + margin, LOG_LIMIT)))
    ax.set_yscale("log")
    narrow = shown.max() <= WIDE_RANGE * shown.min()
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def _thinned(x: Array, y: Floats) -> tuple[Array, Floats]:
    """x and y of a line that looks the same with at most 2 POINTS points: the extremes of each segment."""
    y = np.where(np.isfinite(y), y, np.nan)
    if len(y) <= 2 * POINTS:
        return x, y
    edges = np.linspace(0, len(y), POINTS + 1).astype(int)
    low, high = np.where(np.isnan(y), np.inf, y), np.where(np.isnan(y), -np.inf, y)
    segments = [slice(*edge) for edge in pairwise(edges)]
    kept = np.unique([s.start + index for s in segments for index in (low[s].argmin(), high[s].argmax())])
    return x[kept], y[kept]
