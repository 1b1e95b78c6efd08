"""The five moves of a training step, and fit, which runs many.

Both go through the same compiled functions (csrc/step/loop.pxi), so their results are bitwise identical.  Here: the
order of the moves and the guard against divergence.  Not here: a fit's loop around the compiled chunks (fit.py), what
a checkpoint holds (codec.py).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from enum import Enum
from math import inf, isfinite
from numbers import Real
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from . import _core, checkpoint, codec, models, schedules
from ._check import names_nearest, number, whole
from .errors import CheckpointError, DivergenceError, OrderError
from .fit import Asked, Fit, Session, Watch
from .optim import Adam, Optimizer
from .threads import Pace

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Self

    from ._types import Data, Flag, Number, Path, Schedule, Tokenizer, Values, Whole
    from .history import History

    Refusal = tuple[str, str] | None    # what was expected, and why

EVALUATE_PREDICTIONS = 1024      # at a time

UNSEEN = "zero_grad()", "the model's gradients are not zero and the new ones would add to them"
UNUSED = "zero_grad()", "the gradients of the last step are still there and the new ones would add to them"
ALL_SEEN = "step() or zero_grad()", "all {n} batches of this step have been seen (to average over more, set grad_accum)"
NO_LOSS = "forward()", "there is no new loss to differentiate"
NO_GRADIENT = "backward()", "there are none to clip"
NO_NEW = "backward()", "there are no new gradients"
CLIPPED_LATE = "backward()", "the step has already used the gradients"
USED = "backward()", "these gradients have been used"
UNFINISHED = "step() or zero_grad()", "a step is unfinished"


class Stage(Enum):
    """A stage of a step, named after the last move.  For each move: None where it may follow, or else (what was
    expected, why), for the OrderError.  zero_grad may always follow.

    forward checks further: after NEW it is refused only where the gradients are not zero, after BACKWARD only where all
    grad_accum batches have been seen.
    """

    #           done last               forward   backward clip_grad_*   step    what needs whole steps, as save does
    NEW       = "making the Trainer",   UNSEEN,   NO_LOSS, NO_GRADIENT,  NO_NEW, None
    READY     = "zero_grad()",          None,     NO_LOSS, NO_GRADIENT,  NO_NEW, None
    FORWARD   = "forward()",            None,     None,    NO_GRADIENT,  NO_NEW, UNFINISHED
    BACKWARD  = "backward()",           ALL_SEEN, NO_LOSS, None,         None,   UNFINISHED
    CLIPPED   = "clip_grad_norm()",     ALL_SEEN, NO_LOSS, None,         None,   UNFINISHED
    STEPPED   = "step()",               UNUSED,   NO_LOSS, CLIPPED_LATE, USED,   None

    last: str
    forward: Refusal
    backward: Refusal
    clip: Refusal
    step: Refusal
    whole_steps: Refusal

    def __init__(
        self, last: str, forward: Refusal, backward: Refusal, clip: Refusal, step: Refusal, whole_steps: Refusal
    ) -> None:
        self.last, self.forward, self.backward = last, forward, backward
        self.clip, self.step, self.whole_steps = clip, step, whole_steps

    def error(self, move: str, refusal: tuple[str, str], n: int) -> OrderError:
        """The OrderError of a move that may not follow this stage; n: grad_accum."""
        expected, why = refusal
        return OrderError(f"{move} was called after {self.last}, expected {expected}: {why.format(n=n)}")


NEW, READY, FORWARD, BACKWARD, CLIPPED, STEPPED = Stage     # a global is looked up faster than a member

MADE_AS = {"model": "a model, such as BigramLM(27)", "optimizer": "an optimizer, such as Adam(lr=0.01)"}


def _fixed(name: str, doc: str) -> Any:
    """A property that only __init__ may set, since the compiled step would keep using the old object."""

    def refuse(trainer: Trainer, value: object) -> None:
        raise AttributeError(f"{name} is fixed when a Trainer is made; make a new one: Trainer(model, optimizer)")

    return property(attrgetter(f"_{name}"), refuse, doc=doc)


class Trainer:
    """Trains a model with an optimiser: by hand, move by move, or with `fit`.

    model: BigramLM, ...  optimizer: Adam, AdamW or SGD (default Adam()); its lr is multiplied by the schedule.
    tokenizer: turns documents into ids, for language models.  schedule: a function of the step, see
    fastloop.schedules (default constant).  clip_norm: largest global gradient norm, or None.  clip_value: largest
    magnitude of a single gradient, or None.  grad_accum: batches whose gradients are averaged before a step.

    Attributes: steps (taken so far), lr (of the next step), history and total_steps (of the last fit), last_fit (the
    Fit itself, or None), loop (the compiled step).

    One run at a time: while fit, resume or lr_find is running on a model, another of them, a move by hand and
    load_state_dict raise OrderError, whether a callback, another thread or another trainer of the model calls them.  A
    callback may evaluate, save, generate, and copy the model.  Between two steps a Trainer can be copied (copy.copy
    means copy.deepcopy) and pickled, model and optimiser with it; the copy trains on, bit for bit, as the original
    would.
    """

    tokenizer: Tokenizer | Any      # None where there is none
    clip_norm: float | None
    clip_value: float | None
    grad_accum: int
    notes: dict[str, Any]           # anything JSON-able, saved with the checkpoint
    last_fit: Fit | None            # which may be at work, and which resume goes on with
    loop: _core.variant.Loop

    @names_nearest
    def __init__(
        self, model: models.Model, optimizer: Optimizer | None = None, *, tokenizer: Tokenizer | None = None,
        schedule: Schedule | None = None, clip_norm: Number | None = None, clip_value: Number | None = None,
        grad_accum: Whole = 1,
    ) -> None:
        self._model = model
        self._optimizer = Adam() if optimizer is None else optimizer
        self.tokenizer = tokenizer
        self.schedule = schedules.constant() if schedule is None else schedule
        # _check_settings makes plain numbers of these
        self.clip_norm, self.clip_value, self.grad_accum = cast(Any, (clip_norm, clip_value, grad_accum))
        self._check_settings()
        self.notes = {}
        self.last_fit = None
        self._wire()
        self._stage = NEW
        self._micro = 0             # backward passes since zero_grad
        self._norms: list[float] = []   # of the last steps by hand, for DivergenceError

    def _check_settings(self) -> None:
        """Refuse attributes of a wrong type or value, and make Python's numbers of NumPy's, as a checkpoint needs them.
        They may have been set since the trainer was made."""
        if isinstance(self.model, Optimizer) or isinstance(self.optimizer, models.Model):
            raise TypeError("the optimizer stands where the model should: Trainer(model, optimizer)")
        for name, kind in (("model", models.Model), ("optimizer", Optimizer)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} = {getattr(self, name)!r:.80} must be {MADE_AS[name]}")
        if not hasattr(self.model, "params"):
            kind = type(self.model).__name__
            raise TypeError(f"{kind}.__init__ must call super().__init__(shapes, ...): the model has no parameters yet")
        if self.tokenizer is not None and not hasattr(self.tokenizer, "encode_docs"):
            raise TypeError(f"tokenizer = {self.tokenizer!r:.80} must be a tokenizer, such as CharTokenizer(docs)")
        for name in ("clip_norm", "clip_value"):
            if getattr(self, name) is not None:
                setattr(self, name, number(name, getattr(self, name), 0.0, above=True))
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError(f"clip_norm = {self.clip_norm} and clip_value = {self.clip_value}: give only one of them")
        self.grad_accum = whole("grad_accum", self.grad_accum)
        if not callable(self.schedule):
            raise TypeError(f"schedule must be a function of the step, got {self.schedule!r}")
        if schedules.is_maker(self.schedule):
            name = self.schedule.__name__
            raise TypeError(f"schedule = {name} makes a schedule: call it, {name}(...)")

    if TYPE_CHECKING:
        @property
        def model(self) -> Any: ...         # a Model; Any, as generate and predict are of one kind or the other
        @property
        def optimizer(self) -> Optimizer: ...
    else:
        model = _fixed("model", "The model that is trained; the compiled step is made for it and no other.")
        optimizer = _fixed("optimizer", "The optimiser that trains it.")

    @property
    def steps(self) -> int:
        """Steps taken so far, by hand and in fits: what the schedule counts.  May be set between steps."""
        return self.loop.steps

    @steps.setter
    def steps(self, value: Whole) -> None:
        self.loop.steps = whole("steps", value, 0)

    @property
    def schedule(self) -> Schedule:
        """The function of the step whose value multiplies the optimiser's lr; may be set between steps by hand and
        between runs.  A run keeps the one that it began with, as it does clip_norm, clip_value and grad_accum."""
        return self._schedule

    @schedule.setter
    def schedule(self, value: Schedule) -> None:
        self._schedule, self._factor = value, schedules.plain(value)

    def _wire(self) -> None:
        """The compiled step, over the buffers of the model and the optimiser."""
        self.loop = _core.variant.Loop(self.model.make_core(), self.optimizer.bind(self.model), self.model.gate)
        self._paces: defaultdict[int, Pace] = defaultdict(Pace)     # by the examples a step takes

    def __getstate__(self) -> tuple[dict[str, Any], int]:
        self._between_steps("copying or pickling a Trainer")
        state = {name: value for name, value in vars(self).items() if name not in ("loop", "_paces", "_factor")}
        return state, self.steps

    def __setstate__(self, state: tuple[dict[str, Any], int]) -> None:
        attributes, steps = state
        vars(self).update(attributes)
        self.schedule = self._schedule
        self._wire()
        self.steps = steps

    def __copy__(self) -> Self:
        return copy.deepcopy(self)      # two trainers of one model and one optimiser would undo each other's steps

    def prepare(self, data: Data, y: ArrayLike | None = None) -> tuple[_core.variant.Data, int]:
        """Documents (or X and y) as compiled data, which fit and evaluate can take many times; and how many were cut.

        Prepared data is returned as it is.  It holds copies: what is done to X, y or the documents afterwards, also by
        a callback, does not change it.
        """
        if isinstance(data, _core.variant.Data):
            return data, 0
        return self.model.make_data(data, y, self.tokenizer)

    # The five moves

    def batch(
        self, docs: Data, y: ArrayLike | None = None
    ) -> _core.variant.TokenBatch | _core.variant.ArrayBatch:
        """A batch of all these documents (or of all rows of X and y), for forward."""
        data, _ = self.prepare(docs, y)
        batch = self.model.make_batch(data)
        batch.take(np.arange(data.n_examples), data.n_examples * self.grad_accum)
        return batch

    def zero_grad(self) -> None:
        """Set every gradient to zero, and abandon a step that was begun."""
        self.loop.zero_grad()
        self._stage, self._micro = READY, 0

    def forward(self, batch: _core.variant.Batch) -> float:
        """The loss of a batch: the mean over the positions of each document, then over the documents.

        Raises OrderError where it would add to the gradients of an earlier step (in a new trainer: to gradients that
        another trainer of the model left), DivergenceError where the loss is not finite.
        """
        stage = self._stage
        if stage.forward is not None and (stage is not BACKWARD or self._micro >= self.grad_accum):
            self.model.gate.check("forward()")
            if stage is not NEW or self.model.grads.flat.any():
                raise stage.error("forward()", stage.forward, self.grad_accum)
        loss = self.loop.forward(batch) * self.grad_accum
        self._stage = FORWARD
        if not isfinite(loss):
            self._stage = READY if self._micro == 0 else BACKWARD
            self.diverged(loss, loss)
        return loss

    def backward(self) -> None:
        """Add the gradient of the last forward's loss, divided by grad_accum, to the gradients."""
        if self._stage.backward is not None:
            self._refuse("backward()", self._stage.backward)
        try:
            self.loop.backward()
        except OrderError:
            raise
        except BaseException:       # from a model of the user's own, which has perhaps added half of the gradient
            self.zero_grad()
            raise
        self._micro += 1
        self._stage = BACKWARD

    def clip_grad_norm(self, max_norm: Number | None = None) -> float:
        """Scale the gradients so that their global norm is at most max_norm (default: the trainer's clip_norm).

        Returns the norm before clipping.  Raises DivergenceError, the gradients untouched, where it is not finite.
        """
        max_norm = _limit("max_norm", self.clip_norm if max_norm is None else max_norm)
        norm = self._gradient_to_clip("clip_grad_norm")
        if norm > max_norm:
            self.loop.scale_grads(max_norm / norm)
        self._stage = CLIPPED
        return norm

    def clip_grad_value(self, max_abs: Number | None = None) -> float:
        """Bring every single gradient into [-max_abs, max_abs] (default: the trainer's clip_value).

        Returns the global norm before clipping.  Raises as clip_grad_norm does.
        """
        max_abs = _limit("max_abs", self.clip_value if max_abs is None else max_abs)
        norm = self._gradient_to_clip("clip_grad_value")
        self.loop.clip_value(max_abs)
        self._stage = CLIPPED
        return norm

    def _gradient_to_clip(self, what: str) -> float:
        """The norm of a finished gradient that may be clipped."""
        if self._stage.clip is not None:
            self._refuse(f"{what}()", self._stage.clip)
        return self._finish_gradient()

    def step(self) -> float:
        """Update the parameters from the gradients, which are left as they are; returns the learning rate used.

        Raises OrderError before a backward; DivergenceError where the gradient norm is not finite, the schedule gives
        something else than a finite number of at least 0, or a parameter or moment would not be finite after the step.
        Nothing is changed then.
        """
        if self._stage.step is not None:
            self._refuse("step()", self._stage.step)
        factor = self._factor(self.loop.steps)
        lr = schedules.rate(self._optimizer.lr, factor)
        # After clipping the norm is a new one, and the gradients may have been written to since.
        stage, norm = self._stage, self._finish_gradient() if self._stage is BACKWARD else -1.0
        # Set before the call: a signal handler may raise as it returns, and the step has been taken then.
        self._stage = STEPPED
        try:
            refused = self.loop.step(lr, norm)
        except OrderError:
            self._stage = stage
            raise
        if refused is not None:
            self._stage = stage
            self.diverged(self.loop.loss * self.grad_accum, refused, lr, factor=factor)
        self._norms = self._norms[-4:] + [self.loop.norm]
        return lr

    def _lr(self) -> float:
        """The learning rate of the next step; NaN where the schedule gives no number."""
        return schedules.rate(self._optimizer.lr, self._factor(self.loop.steps))

    def _finish_gradient(self) -> float:
        """The norm of the finished gradient, known to be finite."""
        if self._micro < self.grad_accum:       # fewer batches than grad_accum: their mean
            self.loop.scale_grads(self.grad_accum / self._micro)
            self._micro = self.grad_accum
        norm = self.loop.grad_norm()
        if not isfinite(norm):
            self.diverged(self.loop.loss * self.grad_accum, norm)
        return norm

    def _refuse(self, move: str, refusal: tuple[str, str]) -> NoReturn:
        """Raise the OrderError of a move that may not follow what was done last, or the
        one that says that a run is at work."""
        self.model.gate.check(move)
        raise self._stage.error(move, refusal, self.grad_accum)

    def diverged(
        self, loss: float, norm: float, lr: float | None = None, norms: Iterable[float] | None = None,
        history: History | None = None, factor: object = 1.0,
    ) -> NoReturn:
        """Raise DivergenceError for the present step; factor: what the schedule gave."""
        if lr is None:
            try:
                lr = self._lr()
            except ValueError:      # a schedule without a length: the message does without lr
                lr = float("nan")
        norms = self._norms if norms is None else norms
        loss, norm, lr = float(loss), float(norm), float(lr)        # NumPy's would warn where they overflow
        what = f"the gradient norm is {norm:.3g}"
        if not isfinite(loss):
            what = f"the loss is {loss}"
        elif isfinite(norm) and not 0.0 <= lr < inf:
            gave = f"the learning rate {lr}" if isinstance(factor, Real) else f"{factor!r:.80}"
            what = f"the schedule gave {gave}, expected a finite number of at least 0"
        elif isfinite(norm * norm):
            what += ", and a parameter or moment would not be finite after the step"
        before = ", ".join(f"{x:.3g}" for x in norms) or "none"
        raise DivergenceError(
            f"step {self.steps + 1}: {what} (lr {lr:.3g}, norms of the steps before: {before}); the parameters are as "
            "they were before this step. Try a smaller lr, clip_norm=1.0, or look for extreme values in the data",
            self.steps, loss, norm, lr, norms, history,
        )

    # Many steps

    @names_nearest
    def fit(
        self, data: Data, y: ArrayLike | None = None, *, steps: Whole | None = None, epochs: Whole | None = None,
        batch_size: Whole = 1, shuffle: Flag | None = None, seed: Whole = 0, validation: Data | Number | None = None,
        eval_every: Whole | None = None, patience: Whole | None = None, min_delta: Number = 0.0,
        restore_best: Flag = False, tol: Number | None = None, log_every: Whole | None = None,
        callbacks: Iterable[object] = (), save: Path | None = None, save_every: Whole | None = None,
    ) -> History:
        """Train for `steps` steps, or `epochs` times through the data (default 1); returns the History.

        data: list of documents; one str, a text that is learnt in windows of block_size; or array X with y, or (X, y).
        batch_size: examples a forward pass; a step takes grad_accum of them.
        shuffle: False or None takes the examples in the order given, True in a new random order each epoch; leave it
        out for a text, whose windows are drawn at random.  seed: of the random stream that draws the order.  With
        steps, a batch that reaches the last example goes on with the first; with epochs, the last batch of each may be
        smaller.

        validation: data of the same kind ((X, y) for arrays), evaluated every `eval_every` steps (default: each epoch,
        or ten times in all) and after the last.  A number instead, such as 0.2, is a share of the data to set aside:
        the end of a text, or documents or rows that are drawn at random by seed.  patience: stop after so many
        evaluations in a row none of which was lower than the best by more than min_delta.  restore_best: end with the
        parameters of the best evaluation.  tol: stop when the mean loss of an epoch differs by less than this from that
        of the one before.

        save: a file that gets a checkpoint every `save_every` steps and at the end, and beside it (run.best.npz for
        run.npz) one of the best evaluation.
        callbacks: objects with any of the methods on_start(trainer), on_step(trainer) after each step,
        on_chunk(trainer) whenever compiled code returns, after some 40 ms or a longer step, on_log(trainer) at the
        first step, every `log_every` steps (default 100; or the callback's own attribute `every`; 0: never) and the
        last, on_evaluate(trainer, step, loss), on_end(trainer), which is called whichever way the run ends.  A callback
        that raises ends the run after a whole step.

        Warns with a FastloopWarning where the learning rate was 0 at every step, so that nothing was learnt.

        Ctrl-C ends the run after a whole step, and history.interrupted is then True.  Raises DivergenceError, with the
        parameters as they were before the failing step, and OrderError in the middle of a step by hand.
        """
        self._between_steps("fit()")
        self._check_settings()
        given: Any = steps, epochs, batch_size, shuffle, seed, eval_every, patience, min_delta, restore_best, tol
        asked = Asked(*given)
        if validation is None and (asked.patience is not None or asked.restore_best):
            raise ValueError("patience and restore_best need validation data to go by")
        classes, share = self.model.classes, None
        try:
            if isinstance(validation, Real):
                share = number("validation", validation, 0.0, 1.0, above=True)
                data, y, validation = self._hold_out(data, y, share, asked.seed)
            data, cut = self.prepare(data, y)
            fit = Fit(asked.settings(data, self.grad_accum, share), self.steps)
            fit.history.cut = cut
            session = self._session(fit, data, validation, callbacks, log_every, save, save_every)
        except BaseException:
            if self.model.classes is not classes:       # labels of a y that was refused
                self.model.classes = classes
            raise
        return self._go(session, "fit()")

    @names_nearest
    def resume(
        self, data: Data, y: ArrayLike | None = None, *, validation: Data | Number | None = None,
        log_every: Whole | None = None, callbacks: Iterable[object] = (), save: Path | None = None,
        save_every: Whole | None = None,
    ) -> History:
        """Go on with the run that a loaded checkpoint was saved in, or that was stopped; returns the whole History.

        data, validation: as fit was given them; a validation share may be left out, since the run knows it.  The result
        is bitwise identical to that of an uninterrupted run.
        Raises CheckpointError where there is nothing to go on with, or the data differ; OrderError where a step by hand
        has been taken since.
        """
        self._between_steps("resume()")
        self._check_settings()
        fit = self.last_fit
        if fit is None:
            raise CheckpointError("there is no run to go on with: call fit")
        if self.steps - fit.start != len(fit.history):
            raise OrderError(
                f"resume() was called {self.steps - fit.start:,} steps after the run began, expected "
                f"{len(fit.history):,}, as many as it has taken: steps by hand are no part of a run"
            )
        share = fit.settings.held_out
        if isinstance(validation, Real) and validation != share:
            held = "no share" if share is None else f"the share {share}"
            raise ValueError(f"validation = {validation}, but the run holds out {held} of its data")
        if share is not None and (validation is None or isinstance(validation, Real)):
            data, y, validation = self._hold_out(data, y, share, fit.settings.seed)
        data, _ = self.prepare(data, y)
        return self._go(self._session(fit, data, validation, callbacks, log_every, save, save_every), "resume()")

    def _hold_out(self, data: Any, y: Any, share: float, seed: int) -> tuple[Any, Any, Any]:
        """(data, y, validation) with that share of the data set aside."""
        if isinstance(data, _core.variant.Data):
            raise TypeError(f"validation = {share} cannot be taken from prepared data: pass the data themselves")
        if hasattr(data, "__next__"):
            data = list(data)
        self.prepare(data, y)       # so that an error names the place in the whole, which also has all class labels
        (data, y), validation = self.model.hold_out(data, y, share, seed)
        return data, y, validation

    def _session(
        self, fit: Fit, data: _core.variant.Data, validation: Any, callbacks: Iterable[object], log_every: Any,
        save: Path | None, save_every: Any,
    ) -> Session:
        """The Session of a fit, its arguments checked."""
        watch = Watch.checked(callbacks, log_every, save, save_every, validation is not None)
        if save is not None:
            codec.check_can_be_saved(self)
        if validation is not None:
            validation, _ = self.prepare(validation)
        return Session(fit, self, data, validation, watch, self._paces[fit.settings.examples])

    def _go(self, session: Session, what: str) -> History:
        with _core.variant.Alone(self.model.gate, what):
            self.last_fit = session.fit
            self.loop.clear()       # zero_grad, for the run that has the model to itself
            self._stage, self._micro = READY, 0
            session.go()
            session.warn()
            return session.history

    # In the types below `| Any` stands for `| None`: a callback, or whoever has called fit, need not check for None.

    @property
    def history(self) -> History | Any:
        """The History of the last fit, or None."""
        return None if self.last_fit is None else self.last_fit.history

    @property
    def total_steps(self) -> int | Any:
        """How many steps the last fit has in all, or None."""
        return None if self.last_fit is None else self.last_fit.settings.steps

    @property
    def stop_reason(self) -> str | None:
        """Why the fit is to end early, after this step; None where it is not."""
        return None if self.last_fit is None else self.last_fit.stopping

    @property
    def best_loss(self) -> float | Any:
        """The lowest validation loss of the last fit, as patience counts it, or None."""
        return None if self.last_fit is None else self.last_fit.best_loss

    @property
    def best_step(self) -> int | Any:
        """After how many of its steps that was."""
        return None if self.last_fit is None else self.last_fit.best_step

    @property
    def lr(self) -> float:
        """The learning rate of the next step: the optimiser's lr, which may be set, times the schedule's factor.

        Raises ValueError where the schedule takes its length from a fit that has not come yet.
        """
        if hasattr(self._schedule, "for_steps") and self.last_fit is not None:
            factor = schedules.plain(self._schedule.for_steps(self.total_steps))
            return self.optimizer.lr * factor(self.steps - self.last_fit.start)
        return self._lr()

    def stop(self, reason: str) -> None:
        """End the running fit after this step, for that reason, a str; for callbacks."""
        if not isinstance(reason, str) or not reason:
            raise TypeError(f"reason = {reason!r} must be a str that says why")
        if self.last_fit is not None:
            self.last_fit.stopping = str(reason)

    def evaluate(self, data: Data, y: ArrayLike | None = None) -> float:
        """The mean loss per prediction (nats per token) over all of the data, documents, a text, X and y or (X, y); the
        parameters are not touched.

        A text is read once from end to end, in consecutive windows of block_size; the last may be shorter.
        """
        data, _ = self.prepare(data, y)
        if isinstance(data, _core.variant.TokenData) and data.windows:
            last = data.n_examples + data.block_size - 1
            data = data.in_turn(np.append(np.arange(0, last, data.block_size), last))
        loop = _core.variant.Loop(self.model.make_core(), None)
        batch = self.model.make_batch(data)
        total, predictions = 0.0, 0
        examples = np.arange(data.n_examples)
        size = max(1, EVALUATE_PREDICTIONS // data.longest)
        for first in range(0, len(examples), size):
            some = examples[first : first + size]
            batch.take(some, len(some))
            loop.forward(batch)
            total += loop.total_loss()
            predictions += batch.n_predictions
        return total / predictions

    # Checkpoints

    def save(self, path: Path) -> None:
        """Write everything to a checkpoint: parameters, moments, step, schedule, run, history, tokenizer.

        The file is written whole or not at all.  Of a model of a class of your own it holds the parameters; load is
        then given a model to read them into.  Raises OrderError in the middle of a step by hand, TypeError for what no
        checkpoint can restore (an optimiser or tokenizer of a class of your own, notes that are not JSON-able), OSError
        as open does.
        """
        self._between_steps("save()")
        self._check_settings()
        path = checkpoint.check_path("path", path)
        codec.check_can_be_saved(self)
        checkpoint.write(path, *codec.pack(self))

    @classmethod
    def load(cls, path: Path, schedule: Schedule | None = None, *, model: models.Model | None = None) -> Self:
        """The trainer that `save` wrote, with a model and optimiser of its own.

        schedule: needed where the saved one was a function of the user's, which a file cannot hold.  model: needed
        where the saved one was of a class of the user's: one of that class, with the same tensors and dtype, whose
        parameters are overwritten.  Where the file does not fit they are left as they were.
        Raises CheckpointError for a file that is damaged, of another version, not a trainer's or of another model;
        OSError as open does.
        """
        return codec.unpack(cls, path, *checkpoint.read(path), schedule, model)

    def lend(self, what: str) -> Loan:
        """A context manager, a Loan, in which `what`, such as "lr_find()", may train on trial; then all is restored.

        Raises OrderError in the middle of a step by hand and while a run is at work; ValueError where the moments
        could not be restored.
        """
        self._between_steps(what)
        return Loan(self)

    def __repr__(self) -> str:
        return f"Trainer({self.model!r}, {self.optimizer!r}, after {self.steps:,} steps)"

    def _between_steps(self, what: str) -> None:
        """Raise OrderError in the middle of a step by hand, and while a run is at work; its callbacks may save."""
        if what == "save()":
            self.model.gate.check_whole(what)
        else:
            self.model.gate.check(what)
        if self._stage.whole_steps is not None:
            raise self._stage.error(what, self._stage.whole_steps, self.grad_accum)


class Loan:
    """At its end a trainer is what it was when the loan was made: parameters, moments, counts, lr, schedule and last
    fit; the gradients are zero.  It may end twice."""

    trainer: Trainer
    attributes: dict[str, Any]
    steps: int
    state: dict[str, Any]
    params: Values

    def __init__(self, trainer: Trainer) -> None:
        # What a fit rebinds is an attribute of the trainer; what it writes into is copied.
        self.trainer, self.attributes, self.steps = trainer, dict(vars(trainer)), trainer.steps
        self.state, self.params = trainer.optimizer.state_dict(), trainer.model.params.flat.copy()
        trainer.optimizer.load_state_dict(self.state)   # refuses now what it would at the end, such as a NaN moment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        trainer = self.trainer
        vars(trainer).update(self.attributes)       # in one call, which no signal handler interrupts
        trainer.steps = self.steps
        trainer.optimizer.load_state_dict(self.state)
        trainer.model.params.flat[:] = self.params
        trainer.zero_grad()


def _limit(name: str, value: Any) -> float:
    """`value` as a limit to clip to; the quick check first saves the microsecond of number()."""
    return value if type(value) is float and 0.0 < value < inf else number(name, value, 0.0, above=True)
