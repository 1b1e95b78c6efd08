"""One call of fit: what it was asked for, how far it is, and the loop around the compiled chunks.

A Run and the trainer's own state are all that a checkpoint needs: which examples a step takes is a function of the
step (sampler.py), so there is no random state to keep.
"""

import os
import signal
import threading
import time
import warnings
from contextlib import suppress
from math import inf

import numpy as np

from . import schedules
from .errors import CheckpointError, FastloopWarning
from .history import History
from .sampler import Sampler
from .schedules import plain

# Compiled code answers Ctrl-C between chunks: one should take about this long, and at first be a guess.
CHUNK_SECONDS = 0.04
FIRST_CHUNK_WORK = 2_000_000    # parameters times examples
STEP_WORK = 200                 # a step of the smallest model, in the same unit: its learning rate and its record

LOG_EVERY = 100                 # steps, where nothing else is said

SETTINGS = (
    "steps", "n_examples", "batch_size", "accumulate", "order", "seed", "epochs", "eval_every", "patience", "min_delta",
    "restore_best", "tol", "fingerprint", "held_out",
)
METHODS = ("on_start", "on_step", "on_chunk", "on_log", "on_evaluate", "on_end")    # of a callback
STATE = ("start", "best_loss", "best_step", "stale", "validation_fingerprint")


class Run:
    """The settings of a fit (named in SETTINGS) and its state (named in STATE, with history and best_params)."""

    def __init__(self, start=0, **settings):
        self.__dict__.update(settings)
        self.start = start              # the trainer's step count when the run began
        self.best_loss = None           # the lowest loss evaluated, and after which step of the run
        self.best_step = None
        self.best_params = None         # a copy, where restore_best asks for it
        self.stale = 0                  # evaluations since
        self.validation_fingerprint = None      # of the data held out, where there are any
        self.history = History(start)
        self.sampler = Sampler(self.n_examples, self.batch_size, self.accumulate, self.order, self.seed, self.epochs)

    def to_arrays(self):
        """(arrays, meta) for a checkpoint."""
        arrays, meta = self.history.to_arrays()
        arrays = {f"history/{name}": array for name, array in arrays.items()}
        if self.best_params is not None:
            arrays["best_params"] = self.best_params
        return arrays, {"history": meta, **{name: getattr(self, name) for name in SETTINGS + STATE}}

    @classmethod
    def from_arrays(cls, arrays, meta):
        """The run that to_arrays described, once checkpoint.py has found each entry to be what it must."""
        run = cls(**{name: meta[name] for name in SETTINGS})
        for name in STATE:
            setattr(run, name, meta[name])
        run.best_params = arrays.get("best_params")
        columns = {name.removeprefix("history/"): a for name, a in arrays.items() if name.startswith("history/")}
        run.history = History.from_arrays(columns, meta["history"])
        return run

    def go(self, trainer, data, validation=None, callbacks=(), log_every=None, save=None, save_every=None):
        """Take the steps that are left; see Trainer.fit for what happens on the way."""
        if data.fingerprint() != self.fingerprint or data.n_examples != self.n_examples:
            raise CheckpointError("these are not the data that the run began with: their checksums differ")
        if validation is not None:
            found, self.validation_fingerprint = self.validation_fingerprint, validation.fingerprint()
            if found not in (None, self.validation_fingerprint):
                self.validation_fingerprint = found
                raise CheckpointError("these are not the validation data of the run so far: their checksums differ")
        check_callbacks(callbacks)
        history, batch = self.history, trainer.model.make_batch(data)
        schedule, origin = trainer.schedule, 0
        if hasattr(schedule, "for_steps"):
            schedule, origin = schedule.for_steps(self.steps), self.start
        factor = plain(schedule)
        clip_norm, clip_value = trainer.clip_norm or inf, trainer.clip_value or inf
        every_step = any(hasattr(callback, "on_step") for callback in callbacks)
        log_every = LOG_EVERY if log_every is None else log_every
        cadences = [getattr(c, "every", log_every) if hasattr(c, "on_log") else 0 for c in callbacks]
        pauses = [
            save and save_every, validation is not None and self.eval_every,
            self.tol and self.sampler.steps_per_epoch, *cadences,
        ]
        pauses = [n for n in pauses if n]
        work = trainer.model.num_params * self.batch_size * self.accumulate + STEP_WORK
        chunk = max(1, FIRST_CHUNK_WORK // work)
        began = time.perf_counter() - (history.seconds[-1] if len(history) else 0.0)
        trainer._clear()
        trainer.stop_reason = history.stop_reason = None
        with Ending(trainer, callbacks):
            call(callbacks, "on_start", trainer)
            # Twice: where a signal's handler raises as the one ends, there is the other.
            with Interrupt() as interrupt, interrupt, trainer._paces[self.batch_size * self.accumulate] as pace:
                while (done := trainer.steps - self.start) < self.steps and trainer.stop_reason is None:
                    chunk_began = time.perf_counter()
                    count = 1 if every_step or (done == 0 and any(cadences)) else min(chunk, self.steps - done)
                    count = min([count, *(n - done % n for n in pauses)])
                    threads, count = pace.choose(count)
                    steps, lr = range(trainer.steps - origin, trainer.steps - origin + count), trainer.optimizer.lr
                    lrs = schedules.rates(lr, [factor(step) for step in steps])
                    losses, norms, clipped = np.empty(count), np.empty(count), np.empty(count, np.uint8)
                    indices, splits = self.sampler.take(done, count)
                    at = trainer.steps, len(history), history.predictions
                    before = time.perf_counter()
                    chunk_of = data, indices, splits, losses, lrs, norms, clipped, before, began
                    try:
                        trainer.loop.run(
                            batch, indices, splits, self.accumulate, lrs, clip_norm, losses, norms, clip_value, clipped
                        )
                        after = time.perf_counter()
                        self.record(trainer, at, *chunk_of)
                    except BaseException:
                        # The handler of a signal may raise as compiled code comes back, or in the midst of the record.
                        self.record(trainer, at, *chunk_of)
                        raise
                    taken = trainer.steps - at[0]
                    done += taken
                    pace.note(threads, after - before, history.predictions - at[2])
                    if taken < count:
                        history.stop_reason = "diverged"
                        trainer.diverged(losses[taken], norms[taken], lrs[taken], history.norm[-5:].tolist(), history)
                    chunk = max(1, int(count * CHUNK_SECONDS / max(after - chunk_began, 1e-9)))
                    if validation is not None and (done % self.eval_every == 0 or done == self.steps):
                        self.evaluate(trainer, validation, callbacks, save)
                    if self.tol and done % self.sampler.steps_per_epoch == 0:
                        self.check_converged(trainer)
                    # From here on the step is complete: what a callback saves goes on to the same bits.
                    call(callbacks, "on_step", trainer)
                    if interrupt.seen:
                        trainer.stop_reason, history.interrupted = "interrupted", True
                    call(callbacks, "on_chunk", trainer)
                    last = done == self.steps or trainer.stop_reason is not None
                    for callback, every in zip(callbacks, cadences, strict=True):
                        if every and (done == 1 or done % every == 0 or last):
                            call([callback], "on_log", trainer)
                    if save and save_every and done % save_every == 0 and done < self.steps:
                        trainer.save(save)
            history.stop_reason = trainer.stop_reason or "finished"
            if self.restore_best and self.best_params is not None and not history.interrupted:
                trainer.model.params.flat[:] = self.best_params
            if save:
                trainer.save(save)
        if len(history) and not history.lr.any():
            warnings.warn(
                f"the learning rate was 0 at all {len(history):,} steps of this fit, and nothing was learnt: "
                f"{what_to_do(trainer, self.start)}", FastloopWarning, stacklevel=5,
            )

    def record(self, trainer, at, data, indices, splits, losses, lrs, norms, clipped, before, began):
        """Put the steps that the compiled call took into the history, unless they are there.

        at: the trainer's steps, rows and predictions of the history, all before that call.
        """
        now, history = time.perf_counter(), self.history
        steps, rows, predictions = at
        taken = trainer.steps - steps
        if len(history) == rows and taken:
            history.predictions = predictions + data.predictions(indices[: splits[taken * self.accumulate]])
            history.extend(
                loss=losses[:taken], lr=lrs[:taken], norm=norms[:taken], clipped=clipped[:taken],
                seconds=before - began + (now - before) / len(lrs) * np.arange(1, taken + 1),
            )

    def evaluate(self, trainer, validation, callbacks, save):
        """Evaluate, note whether it is the best so far, and stop where patience is at its end."""
        loss, done = trainer.evaluate(validation), trainer.steps - self.start
        self.history.evaluations.append((done, loss))
        if loss < (inf if self.best_loss is None else self.best_loss - self.min_delta):     # NaN never is
            best = trainer.model.params.flat.copy() if self.restore_best else None
            self.best_params, self.best_loss, self.best_step, self.stale = best, loss, done, 0
            if save:
                trainer.save(best_path(save))
        else:
            self.stale += 1
        if self.patience is not None and self.stale >= self.patience:
            trainer.stop("patience")
        call(callbacks, "on_evaluate", trainer, done, loss)

    def check_converged(self, trainer):
        """Stop where the mean loss of an epoch differs from the one before by less than tol."""
        n = self.sampler.steps_per_epoch
        losses = self.history.loss
        if len(losses) >= 2 * n and abs(losses[-n:].mean() - losses[-2 * n : -n].mean()) < self.tol:
            trainer.stop("converged")


def what_to_do(trainer, start):
    """Against a learning rate of 0."""
    if trainer.optimizer.lr == 0.0:
        return "the optimizer's lr is 0"
    return (
        f"the schedule has come to its end (it counts the trainer's steps, of which {start:,} were taken before); one "
        "made without a length, such as schedules.linear(), takes it from each fit: set trainer.schedule to it"
    )


def best_path(path):
    """run.npz -> run.best.npz"""
    root, extension = os.path.splitext(os.fspath(path))
    return f"{root}.best{extension}"


def call(callbacks, method, *arguments):
    for callback in callbacks:
        if hasattr(callback, method):
            getattr(callback, method)(*arguments)


def check_callbacks(callbacks):
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
    """Calls on_end whichever way a run ends; what a callback raises then does not hide what ended the run."""

    def __init__(self, trainer, callbacks):
        self.trainer, self.callbacks = trainer, callbacks

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is None:
            call(self.callbacks, "on_end", self.trainer)
            return
        history = self.trainer.history
        history.stop_reason = history.stop_reason or kind.__name__
        for callback in self.callbacks:
            with suppress(Exception):
                call([callback], "on_end", self.trainer)


class Interrupt:
    """Notes Ctrl-C instead of raising it, so that a run ends at a whole step; a second one raises as usual.

    Where the process ignores Ctrl-C, as a shell script's background jobs do, it goes on doing so.
    """

    def __init__(self):
        self.seen, self.previous, self.listens = False, signal.getsignal(signal.SIGINT), False
        main = threading.current_thread() is threading.main_thread()
        self.due = main and self.previous != signal.SIG_IGN     # there is what to listen to, and then to give back

    def __enter__(self):
        if self.due and not self.listens:
            self.listens = True
            try:
                signal.signal(signal.SIGINT, self.note)
            except BaseException:       # from another signal's handler: __exit__ will not be called
                self.__exit__()
                raise
        return self

    def note(self, number, frame):
        self.seen = True
        self.__exit__()

    def __exit__(self, *exception):
        if self.due:
            signal.signal(signal.SIGINT, self.previous)
            self.due = False
