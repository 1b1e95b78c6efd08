"""What a run records, and its way to and from files.  Drawing it is in plot.py, judging it in diagnose.py."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np

from ._check import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self

    from ._types import Array, Bools, Drawn, Floats, Path, Whole

FEW = 16        # steps that there is room for from the start
FORMAT = "fastloop.history.1"       # in every JSON file; a reader of another layout refuses it


class History:
    """One entry a step of a run, as arrays.

    loss: nats (or the model's own loss); lr: after the schedule; norm: of the gradient, before clipping;
    clipped: bool, whether the gradient was clipped; seconds: since the run began.  The others are float64.
    evaluations: list of (step, loss): after how many steps of this run, and the loss in the unit of `loss`.
    predictions: how many the run has trained on.  cut: documents cut to block_size.
    start_step: the trainer's step count when the run began.  stop_reason: why it ended: "finished", "patience",
    "converged", "interrupted" (by Ctrl-C; then `interrupted` is True too), "diverged", what Trainer.stop was given, or
    the name of the exception that ended it; None while it runs.

    A Trainer fills it; a loop of your own does so with `append`.
    """

    columns: ClassVar[tuple[str, ...]] = ("loss", "lr", "norm", "clipped", "seconds")
    scalars: ClassVar[tuple[str, ...]] = ("start_step", "predictions", "cut", "stop_reason", "interrupted")

    # The columns, which __getattr__ gives
    loss: Floats
    lr: Floats
    norm: Floats
    clipped: Bools
    seconds: Floats

    start_step: int
    evaluations: list[tuple[int, float]]
    predictions: int
    cut: int
    stop_reason: str | None
    interrupted: bool
    _columns: dict[str, Array]

    def __init__(self, start_step: int = 0) -> None:
        self._columns = {name: np.empty(FEW, bool if name == "clipped" else np.float64) for name in self.columns}
        self._size = 0
        self._began = time.perf_counter()
        self.start_step = start_step
        self.evaluations = []
        self.predictions = self.cut = 0
        self.stop_reason = None
        self.interrupted = False

    def __getstate__(self) -> dict[str, Any]:
        # The clock of this process means nothing in another: what goes along is the time that has passed.
        columns = {name: getattr(self, name).copy() for name in self.columns}
        return {**vars(self), "_columns": columns, "_began": time.perf_counter() - self._began}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._began = time.perf_counter() - state["_began"]

    def __copy__(self) -> Self:
        return copy.deepcopy(self)      # two that share columns would overwrite each other's

    def __len__(self) -> int:
        return self._size

    def __getattr__(self, name: str) -> Array:
        if name in self.columns:
            return self._columns[name][: self._size]
        raise AttributeError(f"History has no attribute {name!r}")

    def extend(self, **values: Sequence[Any] | Array) -> None:
        """Append arrays of equal length, one for each column."""
        count = len(values["loss"])
        for name, column in zip(self.columns, self.room(count), strict=True):
            column[:] = values[name]
        self.advance(count)

    def room(self, count: int) -> list[Array]:
        """Views of the next `count` entries of each column, in their order, to write into; `advance` counts them."""
        size, end = self._size, self._size + count
        if len(self._columns["loss"]) < end:
            for name, column in self._columns.items():
                self._columns[name] = grown = np.empty(max(2 * len(column), end), column.dtype)
                grown[:size] = column[:size]
        return [column[size:end] for column in self._columns.values()]

    def advance(self, count: int) -> None:
        """Count that many entries of `room` as written."""
        self._size += count

    def append(
        self, loss: float, lr: float = np.nan, norm: float = np.nan, clipped: bool = False, seconds: float | None = None
    ) -> None:
        """Append one step, in a loop of your own; what is not given is NaN, and the time since this object was made."""
        if seconds is None:
            seconds = time.perf_counter() - self._began
        self.extend(loss=[loss], lr=[lr], norm=[norm], clipped=[clipped], seconds=[seconds])

    def mean_loss(self, window: Whole = 100) -> float:
        """The mean loss of the last `window` steps, or of all where there are fewer."""
        return float(self.loss[-whole("window", window) :].mean())

    # Summaries and pictures

    def smoothed(self, window: Whole | None = None) -> Floats:
        """The mean of each entry of `loss` and the window - 1 before it (fewer at the start), float64.

        window: in steps; None takes a twentieth of the run.  Entries that are not finite are left out, and give NaN
        where there is no other.
        """
        if window is None:
            window = max(1, self._size // 20)
        window = whole("window", window)
        finite = np.isfinite(self.loss)
        last = np.arange(1, self._size + 1)
        first = np.maximum(last - window, 0)
        with np.errstate(all="ignore"):     # losses near 1e308 give NaN, and no warning
            sums, counts = (
                (total := np.concatenate(([0.0], np.cumsum(column))))[last] - total[first]
                for column in (np.where(finite, self.loss, 0.0), finite)
            )
            return np.divide(sums, counts, out=np.full(self._size, np.nan), where=counts > 0)

    @np.errstate(over="ignore", under="ignore")
    def sparkline(self, width: Whole = 60, ascii: bool = False) -> str:
        """The loss as a line of at most `width` characters, from the lowest mark at its minimum to the highest.

        Each character is the mean of its share of the steps; `x` marks a share without a finite loss.  ascii: for
        terminals without block characters.  An empty run gives an empty string.
        """
        width = whole("width", width)
        marks = "_.-=+*#@" if ascii else "▁▂▃▄▅▆▇█"
        if self._size == 0:
            return ""
        shares = [share[np.isfinite(share)] for share in np.array_split(self.loss, min(width, self._size))]
        means = np.array([(share / share.size).sum() if share.size else np.nan for share in shares])
        finite = means[np.isfinite(means)]
        low, span = (finite.min(), np.ptp(finite)) if finite.size else (0.0, 0.0)
        heights = (means - low) / (span or 1.0) * (len(marks) - 1)
        return "".join(marks[round(height)] if np.isfinite(height) else "x" for height in heights)

    @overload
    def plot(self, path: Path | None = None, baseline: float | None = None, figure: None = None) -> Figure: ...
    @overload
    def plot(self, path: Path | None = None, baseline: float | None = None, *, figure: Drawn) -> Drawn: ...
    def plot(self, path: Path | None = None, baseline: float | None = None, figure: Any = None) -> Any:
        """Draw the run and return a matplotlib Figure; see `fastloop.plot.plot`, which needs the extra `plot`."""
        from .plot import plot

        return plot(self, path, baseline, figure)

    # To files and back

    def to_arrays(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """(arrays, scalars): copies of all there is to know, for a checkpoint; `from_arrays` makes an equal History.

        arrays: the columns, each (N,), and evaluation_step (E,) int64, evaluation_loss (E,) float64.  scalars: a dict
        of int, str, bool and None.
        """
        arrays = {name: getattr(self, name).copy() for name in self.columns}
        arrays["evaluation_step"] = np.array([step for step, _ in self.evaluations], np.int64)
        arrays["evaluation_loss"] = np.array([loss for _, loss in self.evaluations], np.float64)
        return arrays, {name: getattr(self, name) for name in self.scalars}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], scalars: Mapping[str, Any]) -> Self:
        """The History that `to_arrays` took apart.  Raises ValueError for names or lengths that do not belong."""
        expected = {*cls.columns, "evaluation_step", "evaluation_loss"}
        for what, got, names in (("arrays", arrays, expected), ("scalars", scalars, set(cls.scalars))):
            if set(got) != names:
                raise ValueError(f"{what} of a history: got {sorted(got)}, expected {sorted(names)}")
        lengths = {name: len(array) for name, array in arrays.items()}
        if len({lengths[name] for name in cls.columns}) > 1 or lengths["evaluation_step"] != lengths["evaluation_loss"]:
            raise ValueError(f"arrays of a history differ in length: {lengths}")
        history = cls()
        for name, value in scalars.items():
            setattr(history, name, value)
        history.extend(**{name: arrays[name] for name in cls.columns})
        history.evaluations = [
            (int(step), float(loss))
            for step, loss in zip(arrays["evaluation_step"], arrays["evaluation_loss"], strict=True)
        ]
        return history

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: Path) -> None: ...
    def to_json(self, path: Path | None = None) -> str | None:
        """The run as one JSON object, returned as a str, or written to path (str or os.PathLike).

        Floats have as many digits as their exact value needs.  JSON has no NaN and no infinities: they are the strings
        "NaN", "Infinity" and "-Infinity", which float() in Python and Number() in JavaScript understand.
        """
        arrays, scalars = self.to_arrays()
        text = json.dumps(
            {"format": FORMAT, **scalars, **{name: _plain(array) for name, array in arrays.items()}}, allow_nan=False
        )
        if path is None:
            return text
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        return None

    @classmethod
    def from_json(cls, source: Path) -> Self:
        """The History that `to_json` wrote, every float the same.

        source: a path, or the text itself (a str that starts with "{").  Raises ValueError for anything else, OSError
        as `open` does.
        """
        if isinstance(source, str) and source.lstrip().startswith("{"):
            text = source
        else:
            with open(source, encoding="utf-8") as file:
                text = file.read()
        data = json.loads(text)
        found = data.pop("format", None) if isinstance(data, dict) else None
        if found != FORMAT:
            raise ValueError(f"not a history in JSON: format is {found!r}, expected {FORMAT!r}")
        scalars = {name: data.pop(name) for name in cls.scalars if name in data}
        kinds = {"clipped": bool, "evaluation_step": np.int64}
        arrays = {
            name: np.array([float(x) if isinstance(x, str) else x for x in values], kinds.get(name, np.float64))
            for name, values in data.items()
        }
        return cls.from_arrays(arrays, scalars)

    def to_csv(self, path: Path) -> None:
        """Write the run as a table, one line a step: step (from 1), the columns (clipped as 0 or 1), and validation.

        validation is the loss of the evaluation after that step, empty where there was none; an evaluation at a step
        that has no entry gets a line of its own.  Where a step was evaluated twice the last counts.
        """
        validation = dict(self.evaluations)
        rows = {step: [""] * len(self.columns) for step in validation}
        columns = [getattr(self, name).tolist() for name in self.columns]
        for step, row in enumerate(zip(*columns, strict=True), 1):
            rows[step] = [repr(int(x) if isinstance(x, bool) else x) for x in row]
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            print("step", *self.columns, "validation", sep=",", file=file)
            for step in sorted(rows):
                print(step, *rows[step], repr(validation[step]) if step in validation else "", sep=",", file=file)

    def __repr__(self) -> str:
        ends = f", loss {self.loss[0]:.4f} -> {self.mean_loss():.4f}" if self._size else ""
        return f"<History of {self._size} steps{ends}, {self.stop_reason or 'running'}>"


def _plain(array: Array) -> list[Any]:
    """`array` as a list for JSON."""
    if array.dtype != np.float64 or np.isfinite(array).all():
        return array.tolist()
    names = {np.inf: "Infinity", -np.inf: "-Infinity"}
    return [x if np.isfinite(x) else names.get(x, "NaN") for x in array.tolist()]


def with_ending(path: Path) -> str:
    """The file name of a picture that was asked for under this one."""
    path = os.fsdecode(path)
    return path if os.path.splitext(path)[1] else f"{path}.png"
