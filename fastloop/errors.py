"""The exceptions that fastloop raises beside Python's own.  Nothing else lives here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .history import History


class FastloopError(Exception):
    """Base of every exception that is fastloop's own."""


class FastloopWarning(UserWarning):
    """A run did what it was asked, which is probably not what was meant; the message says what to do."""


class OrderError(FastloopError, RuntimeError):
    """A move of the training step was called out of order; nothing was changed."""


class DataError(FastloopError, ValueError):
    """A file or document cannot be read or encoded; the message names the place."""


class DivergenceError(FastloopError, ArithmeticError):
    """The loss, the gradient norm or what a step would write is not finite; the parameters stay as they were before it.

    Also where a schedule gives a learning rate that is negative or not finite.

    Attributes: step (how many were taken before it, None where that is not known; the message counts from 1), loss and
    norm (of that step), lr, last_norms (up to five steps before), history (of the run so far, or None when the moves
    were called by hand).
    """

    step: int | None
    loss: float | None
    norm: float
    lr: float
    last_norms: list[float]
    history: History | None

    def __init__(
        self, message: str, step: int | None, loss: float | None, norm: float, lr: float,
        last_norms: Iterable[float] = (), history: History | None = None,
    ) -> None:
        super().__init__(message)
        self.step, self.loss, self.norm, self.lr = step, loss, norm, lr
        self.last_norms, self.history = list(last_norms), history

    def __reduce__(self) -> tuple[object, ...]:
        # Without this, pickle would call it with the message alone, and a process pool wait for ever.
        arguments = (*self.args, self.step, self.loss, self.norm, self.lr, self.last_norms, self.history)
        return type(self), arguments, vars(self)


class CheckpointError(FastloopError, ValueError):
    """A checkpoint cannot be read, or does not fit what it is loaded into; the message says why."""
