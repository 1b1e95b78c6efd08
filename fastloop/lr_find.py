"""The learning-rate range test: which lr to train with, found in a short run that leaves no trace.

How a trainer is lent and restored is in trainer.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from ._check import names_nearest, number, whole
from .errors import DivergenceError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ._types import Data, Flag, Floats, Number, Whole
    from .trainer import Trainer

BLOWN_UP = 4.0      # times the lowest smoothed loss: there the test ends


class LRFinder:
    """What a range test saw.

    lrs, raw_losses, losses: float64 arrays, one entry a step; losses are the raw ones smoothed.  suggestion: the lr at
    which the smoothed loss fell fastest, or None where it never fell.  stop_reason: "finished", "blew up", "diverged"
    or "interrupted".
    """

    lrs: Floats
    raw_losses: Floats
    losses: Floats
    stop_reason: str
    suggestion: float | None

    def __init__(
        self, lrs: Floats, raw_losses: Floats, losses: Floats, stop_reason: str, suggestion: float | None
    ) -> None:
        self.lrs, self.raw_losses, self.losses = lrs, raw_losses, losses
        self.stop_reason, self.suggestion = stop_reason, suggestion

    def __repr__(self) -> str:
        seen = f"{len(self.lrs)} steps"
        if len(self.lrs):
            low = int(np.argmin(self.losses))
            seen += f", lr {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}"
            seen += f", lowest loss {self.losses[low]:.4g} at {self.lrs[low]:.3g}"
        suggestion = "no suggestion" if self.suggestion is None else f"suggestion {self.suggestion:.3g}"
        return f"<LRFinder of {seen}, {self.stop_reason}: {suggestion}>"


@names_nearest
def lr_find(
    trainer: Trainer, data: Data, y: ArrayLike | None = None, *, lr_min: Number = 1e-6, lr_max: Number = 1.0,
    steps: Whole = 100, batch_size: Whole = 1, shuffle: Flag | None = None, seed: Whole = 0, smoothing: Number = 0.9,
) -> LRFinder:
    """Train for at most `steps` steps with an lr that grows from lr_min to lr_max; returns an LRFinder.

    data, y, batch_size, shuffle, seed: as for Trainer.fit.  Step k = 0, 1, ... has the lr
    lr_min (lr_max / lr_min)^(k / (steps - 1)), whatever the optimiser's lr and the trainer's schedule.
    smoothing: the weight of the past, in [0, 1), in the exponential mean of the losses.  The test ends early where that
    mean exceeds four times its lowest, or the loss is no longer finite.

    Afterwards parameters, moments, step counts, lr, schedule and history are what they were; the gradients are zero.

    The suggestion is the lr of the steepest descent: where the smoothed loss has its most negative slope over log lr,
    from step 1 / (1 - smoothing) on, when the mean has settled, to its lowest point.  It is only a starting
    point, and the more reliable the smoother the losses are: use large batches and many steps.

    Raises ValueError or TypeError for a bad range, and what fit raises except DivergenceError.

    L. N. Smith, Cyclical learning rates for training neural networks, WACV 2017, section 3.3, where the lr grows
    linearly and the plot is read by eye; growth by a ratio, smoothing and the steepest point are later practice.
    """
    if not hasattr(trainer, "lend"):
        raise TypeError(f"trainer = {trainer!r:.80} must be a Trainer: Trainer(model, optimizer)")
    lr_min = number("lr_min", lr_min, 0.0, above=True)
    lr_max = number("lr_max", lr_max, lr_min, above=True)
    smoothing, steps = number("smoothing", smoothing, 0.0, 1.0), whole("steps", steps, 3)
    mean = SmoothedLoss(smoothing)
    # Entered twice: where a signal handler raises as the inner loan ends, the outer one still does.
    with _core.variant.Alone(trainer.model.gate, "lr_find()"), trainer.lend("lr_find()") as loan, loan:
        first = trainer.steps
        trainer.optimizer.lr = 1.0
        trainer.schedule = lambda step: lr_min * (lr_max / lr_min) ** ((step - first) / (steps - 1))
        history: Any
        try:
            history = trainer.fit(
                data, y, steps=steps, batch_size=batch_size, shuffle=shuffle, seed=seed, callbacks=[mean]
            )
        except DivergenceError as error:
            history = error.history
    lrs, losses = history.lr.copy(), np.array(mean.values)
    return LRFinder(lrs, history.loss.copy(), losses, history.stop_reason, steepest(lrs, losses, mean.settled))


class SmoothedLoss:
    """A callback: the exponential mean of the losses, divided by the sum of its weights; ends the run that blows up."""

    smoothing: float
    values: list[float]
    total: float            # and the sum of the weights in it
    weight: float
    settled: int            # after so many steps the mean no longer follows the first losses

    def __init__(self, smoothing: float) -> None:
        self.smoothing, self.values = smoothing, []
        self.total = self.weight = 0.0
        self.settled = round(1.0 / (1.0 - smoothing))

    def on_step(self, trainer: Trainer) -> None:
        self.total = self.smoothing * self.total + (1.0 - self.smoothing) * trainer.history.loss[-1]
        self.weight = self.smoothing * self.weight + (1.0 - self.smoothing)
        self.values.append(self.total / self.weight)
        if self.values[-1] > BLOWN_UP * min(self.values):
            trainer.stop("blew up")


@np.errstate(over="ignore", under="ignore")
def steepest(lrs: Floats, losses: Floats, first: int) -> float | None:
    """The lr where the slope of losses over log lr is most negative, from step `first` to the lowest loss, or None."""
    lrs, losses = lrs[first:], losses[first:]
    if len(lrs) < 2:
        return None
    slopes = np.gradient(losses, np.log(lrs))[: np.argmin(losses) + 1]
    k = int(np.argmin(slopes))
    return float(lrs[k]) if slopes[k] < 0.0 else None
