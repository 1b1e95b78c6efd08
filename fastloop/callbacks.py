"""Objects that watch a run: give them to `fit` as `callbacks`.

A callback is any object with some of the methods on_start(trainer), on_log(trainer), on_evaluate(trainer, step, loss),
on_chunk(trainer), on_step(trainer), on_end(trainer).  None of these has on_step, for which fit must
return from compiled code after every step.  How often on_log is called is fit's `log_every`, or the callback's own
attribute `every`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from . import extras

if TYPE_CHECKING:
    from ._types import Path
    from .history import History
    from .trainer import Trainer

REDRAW_SECONDS = 0.05       # a terminal line is not written more often


class _Interval:
    """The figures of a run since the last `take`."""

    before: tuple[int, int, float]

    def __init__(self, trainer: Trainer) -> None:
        self.before = self.place(trainer.history)

    @staticmethod
    def place(history: History) -> tuple[int, int, float]:
        return len(history), history.predictions, float(history.seconds[-1]) if len(history) else 0.0

    def take(self, trainer: Trainer, least: int = 1) -> dict[str, Any]:
        """step, total_steps; loss: the mean of the last loss_steps steps, those since the last time, or `least` if that
        is more; lr, norm: of the last step; clipped: steps clipped since; seconds, predictions: of the run; per_second:
        predictions since."""
        history, now = trainer.history, self.place(trainer.history)
        steps, predictions, seconds = now[0] - self.before[0], now[1] - self.before[1], now[2] - self.before[2]
        self.before = now
        return {
            "step": now[0],
            "total_steps": trainer.total_steps,
            "loss": history.mean_loss(max(steps, least)),
            "loss_steps": min(max(steps, least), now[0]),
            "lr": float(history.lr[-1]),
            "norm": float(history.norm[-1]),
            "clipped": int(history.clipped[-max(steps, 1) :].sum()),
            "seconds": now[2],
            "predictions": now[1],
            "per_second": predictions / max(seconds, 1e-9),
        }


def fixed(x: float, digits: int, small: float = 0.0) -> str:
    """x with so many digits after the point, or with an exponent where that would be long, or it is below `small`."""
    return f"{x:.{digits}f}" if x == 0.0 or small <= x < 1e5 or not math.isfinite(x) else f"{x:.2e}"


class JsonLog:
    """Appends JSON objects to a file, one on each line: "event" is "start", "log", "evaluate" or "end".

    path: created, or added to, so that a resumed run goes on in the same file, or a pipe; each line is
    flushed as it is written.  Floats are exact; NaN and infinities, which JSON does not have, are null.

        log:       step, total_steps, loss (the mean of the last loss_steps steps, those since the line before), lr,
                   norm, clipped (steps, since the line before), seconds and predictions (of the run), per_second
                   (predictions)
        evaluate:  step, loss
        end:       step, stop_reason, seconds, predictions
        start:     step, total_steps, model, optimizer
    """

    path: Path
    file: TextIO | None
    interval: _Interval

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = None

    def on_start(self, trainer: Trainer) -> None:
        self.mend()
        self.interval = _Interval(trainer)
        self.write(
            "start", step=len(trainer.history), total_steps=trainer.total_steps, model=repr(trainer.model),
            optimizer=repr(trainer.optimizer),
        )

    def on_log(self, trainer: Trainer) -> None:
        self.write("log", **self.interval.take(trainer))

    def on_evaluate(self, trainer: Trainer, step: int, loss: float) -> None:
        self.write("evaluate", step=step, loss=loss)

    def on_end(self, trainer: Trainer) -> None:
        history = trainer.history
        step, predictions, seconds = _Interval.place(history)
        if self.file is not None:
            self.write("end", step=step, stop_reason=history.stop_reason, seconds=seconds, predictions=predictions)
            self.file.close()
            self.file = None

    def write(self, event: str, **values: object) -> None:
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        if self.file is None:
            self.file = open(self.path, "a", encoding="utf-8", buffering=1)     # noqa: SIM115 -- closed by on_end
        try:
            self.file.write(json.dumps({"event": event, **values}, allow_nan=False) + "\n")
        except OSError as error:        # such as a full disk, which does not name the file
            file, self.file = self.file, None
            with contextlib.suppress(OSError):
                file.close()
            raise OSError(error.errno, error.strerror, os.fspath(self.path)) from None

    def mend(self) -> None:
        """End the last line, where a run that was killed left it open."""
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            return              # a pipe or a terminal has no last line
        with open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")


class Progress:
    """Shows progress: on a terminal one line, rewritten in place, by tqdm if it is installed (extra: progress), with
    the mean loss of the last 100 steps; else a line for each log, with the mean loss since the one before.

    file: to write to (default: sys.stdout when the run starts).  unit: of predictions.
    """

    file: TextIO | None
    unit: str
    bar: Any                    # tqdm's, on a terminal where it is installed
    out: TextIO
    terminal: bool
    shown: str
    validation: list[str]
    interval: _Interval
    began: tuple[int, int, float]
    drawn: float                # when, by time.monotonic

    def __init__(self, file: TextIO | None = None, unit: str = "tokens") -> None:
        self.file, self.unit = file, unit
        self.bar = None
        self.shown = ""

    def on_start(self, trainer: Trainer) -> None:
        self.out = self.file or sys.stdout
        self.terminal = self.out.isatty()
        self.interval, self.validation, self.drawn = _Interval(trainer), [], time.monotonic()
        self.began = self.interval.before
        if self.terminal:
            self.bar = self.make_bar(trainer)

    def make_bar(self, trainer: Trainer) -> Any:
        try:
            from tqdm import tqdm
        except ImportError:
            return None

        class Bar(tqdm):
            monitor_interval = 0        # no monitor thread: a process that forks is better off without

        return Bar(
            total=trainer.total_steps, initial=len(trainer.history), file=self.out, unit="step", dynamic_ncols=True,
            mininterval=REDRAW_SECONDS,
        )

    def on_log(self, trainer: Trainer) -> None:
        if not self.terminal:
            print("  ".join(self.parts(self.interval.take(trainer)).values()), file=self.out, flush=True)

    def on_chunk(self, trainer: Trainer) -> None:
        ends = len(trainer.history) == trainer.total_steps or trainer.stop_reason is not None
        if not self.terminal or (time.monotonic() - self.drawn < REDRAW_SECONDS and not ends):
            return
        self.drawn = time.monotonic()
        now = self.interval.take(trainer, least=100)
        if self.bar is not None:
            # The losses first: tqdm cuts off what a narrow terminal has no room for.  It adds the steps a second.
            self.bar.set_description_str("  ".join(self.losses(now)), refresh=False)
            self.bar.set_postfix_str(f"lr {fixed(now['lr'], 6, 1e-5)}", refresh=False)
            self.bar.update(now["step"] - self.bar.n)
            return
        parts = {**self.parts(now), "left": self.left(now)}
        width = shutil.get_terminal_size().columns - 1
        for name in ("speed", "norm", "lr", "left", "step"):        # what a narrow terminal has to do without
            if len("  ".join(parts.values())) > width:
                del parts[name]
        self.shown = "  ".join(parts.values())[:width]
        print(f"\r\x1b[K{self.shown}", end="", file=self.out, flush=True)

    def say(self, text: str) -> None:
        """Print text above the line that is redrawn."""
        if self.bar is not None:
            self.bar.write(text, file=self.out)
        elif self.terminal:
            print(f"\r\x1b[K{text}\n{self.shown}", end="", file=self.out, flush=True)
        else:
            print(text, file=self.out, flush=True)

    def losses(self, now: dict[str, Any]) -> list[str]:
        return [f"mean loss {fixed(now['loss'], 4)}", *self.validation]

    def parts(self, now: dict[str, Any]) -> dict[str, str]:
        total = f"{now['total_steps']:,}"
        return {
            "step": f"step {now['step']:>{len(total)},}/{total}",
            "losses": "  ".join(self.losses(now)),
            "lr": f"lr {fixed(now['lr'], 6, 1e-5)}",
            "norm": f"norm {fixed(now['norm'], 3)}",
            "speed": f"{now['per_second']:,.0f} {self.unit}/s",
        }

    def left(self, now: dict[str, Any]) -> str:
        """The time that is left, at the speed of the whole run."""
        each = (now["seconds"] - self.began[2]) / max(now["step"] - self.began[0], 1)
        seconds = round(each * (now["total_steps"] - now["step"]))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"

    def on_evaluate(self, trainer: Trainer, step: int, loss: float) -> None:
        self.validation = [f"val {fixed(loss, 4)}"]

    def on_end(self, trainer: Trainer) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        elif self.terminal and self.shown:
            print(file=self.out, flush=True)
            self.shown = ""


class TensorBoard:
    """Writes loss/train, loss/validation, lr, norm, clipped and per_second, as JsonLog has them, for TensorBoard
    (extra: tensorboard).

    logdir: a folder for the events; it is made.  Raises ImportError without tensorboardX.
    """

    logdir: Path
    make_writer: Any            # tensorboardX.SummaryWriter
    writer: Any
    interval: _Interval

    def __init__(self, logdir: Path) -> None:
        # Now rather than in on_start, so that a missing package is reported before any work is done.
        self.make_writer = extras.load("tensorboardX", "tensorboard", "a TensorBoard log").SummaryWriter
        self.logdir = logdir
        self.writer = None

    def on_start(self, trainer: Trainer) -> None:
        self.writer = self.make_writer(str(self.logdir), flush_secs=5)
        self.interval = _Interval(trainer)

    def on_log(self, trainer: Trainer) -> None:
        now = self.interval.take(trainer)
        self.writer.add_scalar("loss/train", now["loss"], now["step"])
        for name in ("lr", "norm", "clipped", "per_second"):
            self.writer.add_scalar(name, now[name], now["step"])

    def on_evaluate(self, trainer: Trainer, step: int, loss: float) -> None:
        self.writer.add_scalar("loss/validation", loss, step)

    def on_end(self, trainer: Trainer) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
