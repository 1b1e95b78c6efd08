"""A fit: what it was asked for, how far it has come, and its loop around the compiled chunks.

Not here: the moves and their order (trainer.py), which examples a step takes (sampler.py), how many threads a chunk
(threads.py), what a checkpoint holds (codec.py).  Which examples a step takes is a function of the step, so there is no
random state to keep.
"""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _core, checkpoint, schedules
from ._check import MOST_SEED, flag, number, whole
from .errors import CheckpointError, FastloopWarning
from .history import History
from .sampler import ORDERS, Sampler

if TYPE_CHECKING:
    from ._types import Array, Floats, Values
    from .threads import Pace
    from .trainer import Trainer

# Ctrl-C is answered between chunks, so one should take about this long; the length of the first is a guess.
CHUNK_SECONDS = 0.04
FIRST_CHUNK_WORK = 2_000_000    # parameters times examples
STEP_WORK = 200                 # what each step costs beside, in the same unit: its learning rate, its record

LOG_EVERY = 100                 # steps, where nothing else is said
METHODS = ("on_start", "on_step", "on_chunk", "on_log", "on_evaluate", "on_end")    # of a callback


# The check of each argument of Asked; and which of them may be None.
CHECKS: dict[str, tuple[Any, ...]] = {
    "steps": (whole,), "epochs": (whole,), "eval_every": (whole,), "patience": (whole,), "batch_size": (whole,),
    "seed": (whole, 0, MOST_SEED), "min_delta": (number, 0.0), "restore_best": (flag,), "tol": (number, 0.0),
    "shuffle": (flag,),
}
OPTIONAL = {"steps", "epochs", "eval_every", "patience", "tol", "shuffle"}


@dataclass(frozen=True)
class Asked:
    """The arguments of Trainer.fit that say what the fit is, checked before any data is read."""

    steps: int | None
    epochs: int | None
    batch_size: int
    shuffle: bool | None
    seed: int
    eval_every: int | None
    patience: int | None
    min_delta: float
    restore_best: bool
    tol: float | None

    def __post_init__(self) -> None:
        for name, (check, *bounds) in CHECKS.items():
            value = getattr(self, name)
            if value is not None or name not in OPTIONAL:
                object.__setattr__(self, name, check(name, value, *bounds))
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps = {self.steps} and epochs = {self.epochs}: give only one of them")

    def settings(self, data: Any, accumulate: int, held_out: float | None) -> Settings:
        """The settings for these compiled data, `accumulate` batches a step, and the share `held_out` set aside."""
        if data.windows and (self.shuffle is False or self.epochs is not None):
            raise ValueError("windows of a text are drawn at random: give steps, and leave shuffle out")
        per_epoch = -(-data.n_examples // (self.batch_size * accumulate))
        by_epoch = self.steps is None and not data.windows
        steps = (self.epochs or 1) * per_epoch if self.steps is None else self.steps
        return Settings(
            steps=steps, n_examples=data.n_examples, batch_size=self.batch_size, accumulate=accumulate,
            order="random" if data.windows else "shuffled" if self.shuffle else "given", seed=self.seed,
            epochs=by_epoch, eval_every=self.eval_every or (per_epoch if by_epoch else max(1, steps // 10)),
            patience=self.patience, min_delta=self.min_delta, restore_best=self.restore_best, tol=self.tol,
            fingerprint=data.fingerprint(), held_out=held_out,
        )


@dataclass(frozen=True)
class Settings:
    """What a fit does, as a checkpoint stores it; Asked and codec.py have checked the type of each value."""

    steps: int                  # in all
    n_examples: int
    batch_size: int             # examples a forward pass
    accumulate: int             # forward passes a step
    order: str                  # of the examples, and from which seed; see Sampler
    seed: int
    epochs: bool                # whether the last batch of each may be smaller
    eval_every: int             # steps
    patience: int | None        # evaluations
    min_delta: float
    restore_best: bool
    tol: float | None
    fingerprint: int            # of the data
    held_out: float | None      # the share of the data, where validation is one

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order = {self.order!r} is not known")
        if self.steps * self.examples >= 2**63:
            raise ValueError(f"{self.steps} steps of {self.examples} examples are more than can be counted")

    @property
    def examples(self) -> int:
        """Examples a step."""
        return self.batch_size * self.accumulate


class Fit:
    """A fit: its settings, and how far it has come.  A trainer keeps its last one for resume, and so does a
    checkpoint."""

    settings: Settings
    start: int                          # the trainer's step count when the fit began
    best_loss: float | None             # the lowest loss evaluated, and after which step of the fit
    best_step: int | None
    best_params: Values | None          # a copy, where restore_best asks for it
    stale: int                          # evaluations since the best
    validation_fingerprint: int | None  # of the validation data, where there are any
    history: History
    stopping: str | None                # why it is to end after this step

    def __init__(self, settings: Settings, start: int = 0) -> None:
        self.settings, self.start, self.history = settings, start, History(start)
        self.best_loss = self.best_step = self.best_params = None
        self.stale, self.validation_fingerprint, self.stopping = 0, None, None

    def lengthen(self, steps: int) -> None:
        """Make it `steps` long, from resume on; ValueError where that is shorter."""
        if steps < self.settings.steps:
            raise ValueError(f"steps = {steps}: the fit has {self.settings.steps}, and can only be made longer")
        self.settings = replace(self.settings, steps=steps)

    def look(self, loss: float, done: int, params: Values) -> bool:
        """Record the loss of an evaluation; returns whether it is the best so far."""
        settings = self.settings
        self.history.evaluations.append((done, loss))
        better = loss < (inf if self.best_loss is None else self.best_loss - settings.min_delta)    # NaN never is
        if better:
            best = params.copy() if settings.restore_best else None
            self.best_params, self.best_loss, self.best_step, self.stale = best, loss, done, 0
        else:
            self.stale += 1
        return better

    def converged(self, steps_per_epoch: int) -> bool:
        """Whether the mean loss of the last epoch differs from that of the one before by less than tol."""
        n, losses = steps_per_epoch, self.history.loss
        return len(losses) >= 2 * n and abs(losses[-n:].mean() - losses[-2 * n : -n].mean()) < self.settings.tol


class Watch(NamedTuple):
    """Who watches a fit, and where it is saved."""

    callbacks: Sequence[Any]
    log_every: int
    save: str | None
    save_every: int | None

    @classmethod
    def checked(cls, callbacks: Any, log_every: Any, save: Any, save_every: Any, evaluates: bool) -> Watch:
        """These arguments of fit, refused where they would fail at the end of a long run, or never be called."""
        log_every = LOG_EVERY if log_every is None else whole("log_every", log_every, 0)
        save_every = None if save_every is None else whole("save_every", save_every)
        if save is not None:
            save = checkpoint.check_path("save", save)
            checkpoint.check_folder(save)
            if evaluates:
                checkpoint.check_folder(checkpoint.best_path(save))
        check_callbacks(callbacks)
        return cls(callbacks, log_every, save, save_every)

    def methods(self, name: str) -> list[Callable[..., None]]:
        """The callbacks' methods of that name."""
        return [getattr(callback, name) for callback in self.callbacks if hasattr(callback, name)]


class Chunk(NamedTuple):
    """The steps of one compiled call, and the state before it."""

    n_steps: int
    threads: int
    factors: list[Any]      # what the schedule gave
    indices: Array          # of the examples, and where each micro-batch begins in them
    splits: Array
    loss: Floats            # views of the history, which count once the steps are taken
    lr: Floats
    norm: Floats
    clipped: Array
    seconds: Floats
    steps: int              # of the trainer, before
    rows: int               # of the history, before
    predictions: int        # of the history, before
    planned: float          # when: perf_counter()
    began: float


class Session:
    """A running fit, in one call of fit or resume: the trainer and the data, and the loop over chunks.

    A chunk is planned up to the next pause, taken in one compiled call, and recorded.  A pause evaluates, stops, calls
    callbacks and saves, as is due.

    Raises CheckpointError where these are not the data that the fit began with.
    """

    def __init__(self, fit: Fit, trainer: Trainer, data: Any, validation: Any, watch: Watch, pace: Pace) -> None:
        settings = fit.settings
        if data.fingerprint() != settings.fingerprint or data.n_examples != settings.n_examples:
            raise CheckpointError("these are not the data that the run began with: their checksums differ")
        if validation is not None and fit.validation_fingerprint not in (None, validation.fingerprint()):
            raise CheckpointError("these are not the validation data of the run so far: their checksums differ")
        self.fit, self.history, self.trainer, self.data, self.validation = fit, fit.history, trainer, data, validation
        self.watch, self.pace = watch, pace
        self.batch, self.run = trainer.model.make_batch(data), trainer.loop.run
        self.accumulate, self.start, self.steps = settings.accumulate, fit.start, settings.steps
        self.sampler = Sampler(
            settings.n_examples, settings.batch_size, settings.accumulate, settings.order, settings.seed,
            settings.epochs,
        )
        schedule, self.origin = trainer.schedule, 0
        if hasattr(schedule, "for_steps"):
            schedule, self.origin = schedule.for_steps(settings.steps), fit.start
        self.factor = schedules.plain(schedule)
        self.clip_norm, self.clip_value = trainer.clip_norm or inf, trainer.clip_value or inf
        self.on_step, self.on_chunk = watch.methods("on_step"), watch.methods("on_chunk")
        self.on_log = [
            (c.on_log, every) for c in watch.callbacks
            if hasattr(c, "on_log") and (every := getattr(c, "every", watch.log_every))
        ]
        self.pauses = [n for n in (
            watch.save and watch.save_every, validation is not None and settings.eval_every,
            settings.tol and self.sampler.steps_per_epoch, *(every for _, every in self.on_log),
        ) if n]
        work = trainer.model.num_params * settings.examples + STEP_WORK
        own = isinstance(trainer.loop.model, _core.variant.OwnModel)    # whose step may take any time
        self.length = 1 if own else max(1, FIRST_CHUNK_WORK // work)    # of a chunk that takes CHUNK_SECONDS
        self.began = time.perf_counter() - (self.history.seconds[-1] if len(self.history) else 0.0)

    def go(self) -> None:
        """Take the steps that are left; see Trainer.fit for what happens on the way."""
        fit, trainer, history, watch = self.fit, self.trainer, self.history, self.watch
        fit.stopping = history.stop_reason = None
        history.interrupted = False
        if self.validation is not None:
            fit.validation_fingerprint = self.validation.fingerprint()
        with Ending(self):
            for on_start in watch.methods("on_start"):
                on_start(trainer)
            # Entered twice: where a signal handler raises as the inner one ends, the outer one still does.
            with Interrupt() as interrupt, interrupt, self.pace:
                while (done := trainer.steps - self.start) < self.steps and fit.stopping is None:
                    chunk = self.plan(done)
                    done += self.take(chunk)
                    self.pause(done, interrupt)
            history.stop_reason = fit.stopping or "finished"
            if fit.settings.restore_best and fit.best_params is not None and not history.interrupted:
                trainer.model.params.flat[:] = fit.best_params
            if watch.save:
                trainer.save(watch.save)

    def plan(self, done: int) -> Chunk:
        """The next chunk: to the next pause at most."""
        planned, trainer, history = time.perf_counter(), self.trainer, self.history
        count = 1 if self.on_step or (done == 0 and self.on_log) else min(self.length, self.steps - done)
        for n in self.pauses:
            count = min(count, n - done % n)
        threads, count = self.pace.choose(count)
        steps, factor, lr = trainer.steps, self.factor, trainer.optimizer.lr
        first = steps - self.origin
        factors = [factor(step) for step in range(first, first + count)]
        losses, lrs, norms, clipped, seconds = history.room(count)
        if count == 1:
            lrs[0] = schedules.rate(lr, factors[0])
        else:
            lrs[:] = schedules.rates(lr, factors)
        indices, splits = self.sampler.take(done, count)
        return Chunk(
            count, threads, factors, indices, splits, losses, lrs, norms, clipped.view(np.uint8), seconds, steps,
            len(history), history.predictions, planned, time.perf_counter(),
        )

    def take(self, chunk: Chunk) -> int:
        """Take a chunk's steps and record them; returns how many.  Raises DivergenceError where not all were taken."""
        try:
            self.run(
                self.batch, chunk.indices, chunk.splits, self.accumulate, chunk.lr, self.clip_norm, chunk.loss,
                chunk.norm, self.clip_value, chunk.clipped,
            )
            now = time.perf_counter()
            self.record(chunk, now)
        except BaseException:
            # A signal handler may raise as compiled code returns, or in the middle of record.
            self.record(chunk, time.perf_counter())
            raise
        count, history = chunk.n_steps, self.history
        taken = self.trainer.steps - chunk.steps
        self.pace.note(chunk.threads, now - chunk.began, history.predictions - chunk.predictions)
        if taken < count:
            history.stop_reason = "diverged"
            self.trainer.diverged(
                chunk.loss[taken], chunk.norm[taken], chunk.lr[taken], history.norm[-5:].tolist(), history,
                chunk.factors[taken],
            )
        self.length = max(1, int(count * CHUNK_SECONDS / max(now - chunk.planned, 1e-9)))
        return taken

    def record(self, chunk: Chunk, now: float) -> None:
        """Enter the steps that the compiled call took into the history, unless that is done already."""
        taken, history = self.trainer.steps - chunk.steps, self.history
        if taken and len(history) == chunk.rows:
            before, each = chunk.began - self.began, (now - chunk.began) / chunk.n_steps
            chunk.seconds[:taken] = before + each if taken == 1 else before + each * np.arange(1, taken + 1)
            examples = chunk.indices[chunk.splits[0] : chunk.splits[taken * self.accumulate]]
            history.predictions = chunk.predictions + self.data.predictions(examples)
            history.advance(taken)      # the last, so that what comes before can be done again

    def pause(self, done: int, interrupt: Interrupt) -> None:
        """What is due after that many steps of the fit."""
        fit, trainer, watch, settings = self.fit, self.trainer, self.watch, self.fit.settings
        if self.validation is not None and (done % settings.eval_every == 0 or done == self.steps):
            self.evaluate(done)
        if settings.tol and done % self.sampler.steps_per_epoch == 0 and fit.converged(self.sampler.steps_per_epoch):
            trainer.stop("converged")
        # From here on the step is complete: a run resumed from what a callback saves is bitwise identical.
        for on_step in self.on_step:
            on_step(trainer)
        if interrupt.seen:
            fit.stopping, self.history.interrupted = "interrupted", True
        for on_chunk in self.on_chunk:
            on_chunk(trainer)
        if self.on_log:
            last = done == self.steps or fit.stopping is not None
            for on_log, every in self.on_log:
                if done == 1 or done % every == 0 or last:
                    on_log(trainer)
        if watch.save and watch.save_every and done % watch.save_every == 0 and done < self.steps:
            trainer.save(watch.save)

    def evaluate(self, done: int) -> None:
        """Evaluate, save the best so far, and stop where patience has run out."""
        fit, trainer, patience = self.fit, self.trainer, self.fit.settings.patience
        loss = trainer.evaluate(self.validation)
        if fit.look(loss, done, trainer.model.params.flat) and self.watch.save:
            trainer.save(checkpoint.best_path(self.watch.save))
        if patience is not None and fit.stale >= patience:
            trainer.stop("patience")
        for on_evaluate in self.watch.methods("on_evaluate"):
            on_evaluate(trainer, done, loss)

    def warn(self) -> None:
        """Warn, at the line that called fit or resume, where the learning rate was 0 at every step."""
        history = self.history
        if len(history) and not history.lr.any():
            warnings.warn(
                f"the learning rate was 0 at all {len(history):,} steps of this fit, and nothing was learnt: "
                f"{what_to_do(self.trainer, self.start)}", FastloopWarning, stacklevel=5,
            )


def what_to_do(trainer: Trainer, start: int) -> str:
    """Advice against a learning rate of 0."""
    if trainer.optimizer.lr == 0.0:
        return "the optimizer's lr is 0"
    return (
        f"the schedule has come to its end (it counts the trainer's steps, of which {start:,} were taken before); one "
        "made without a length, such as schedules.linear(), takes it from each fit: set trainer.schedule to it"
    )


def check_callbacks(callbacks: Any) -> None:
    """Refuse what would never be called, or not as meant."""
    if not isinstance(callbacks, (list, tuple)):
        raise TypeError(f"callbacks = {callbacks!r} must be a list of objects")
    for i, callback in enumerate(callbacks):
        if isinstance(callback, type):
            raise TypeError(f"callbacks[{i}] is the class {callback.__name__}; give an object: {callback.__name__}()")
        for name in dir(callback):
            if name.startswith("on_") and name not in METHODS:
                raise TypeError(f"callbacks[{i}] has {name}, which fit does not call; it calls {', '.join(METHODS)}")
        if not any(hasattr(callback, name) for name in METHODS):
            raise TypeError(f"callbacks[{i}] = {callback!r:.80} has none of what fit calls: {', '.join(METHODS)}")


class Ending:
    """Calls on_end whichever way a fit ends; an exception in on_end does not hide the one that ended the fit."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        trainer, history = self.session.trainer, self.session.history
        if kind is not None:
            history.stop_reason = history.stop_reason or kind.__name__
        for on_end in self.session.watch.methods("on_end"):
            if kind is None:
                on_end(trainer)
            else:
                with suppress(Exception):
                    on_end(trainer)


class Interrupt:
    """Notes Ctrl-C instead of raising it, so that a run ends at a whole step; a second one raises as usual.

    Where the process ignores Ctrl-C, as a shell script's background jobs do, it goes on doing so.
    """

    def __init__(self) -> None:
        self.seen, self.previous, self.listens = False, signal.getsignal(signal.SIGINT), False
        main = threading.current_thread() is threading.main_thread()
        self.due = main and self.previous != signal.SIG_IGN     # to be handled here, and restored after

    def __enter__(self) -> Interrupt:
        if self.due and not self.listens:
            self.listens = True
            try:
                signal.signal(signal.SIGINT, self.note)
            except BaseException:       # from another signal's handler: __exit__ will not be called
                self.__exit__()
                raise
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        self.__exit__()

    def __exit__(self, *exception: object) -> None:
        if self.due:
            signal.signal(signal.SIGINT, self.previous)
            self.due = False
