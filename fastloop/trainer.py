"""The five moves of a training step, and fit, which runs many.

Both go through the same compiled functions (csrc/loop.pxi), so they give the same bits.  What lives here is the
order of the moves, the guard against divergence, and the bookkeeping around the compiled chunks.
"""

import signal
import threading
import time
from math import inf, isfinite

import numpy as np

from . import _core, schedules
from .errors import DivergenceError, OrderError
from .history import History
from .optim import Adam
from .sampler import Sampler

# Compiled code answers Ctrl-C between chunks: one should take about this long, and at first be a guess.
CHUNK_SECONDS = 0.04
FIRST_CHUNK_WORK = 2_000_000    # parameters times steps
EVALUATE_PREDICTIONS = 1024      # at a time

# Stages of a step: what was done last.
READY, FORWARD, BACKWARD, CLIPPED, STEPPED = "zero_grad()", "forward()", "backward()", "clip_grad_norm()", "step()"


class Trainer:
    """Trains a model with an optimiser: by hand, move by move, or with `fit`.

    model: BigramLM, ...  optimizer: Adam, AdamW or SGD (default Adam()); its lr is multiplied by the schedule.
    tokenizer: turns documents into ids, for language models.  schedule: a function of the step, see
    fastloop.schedules (default constant).  clip_norm: largest global gradient norm, or None.  grad_accum: batches whose
    gradients are averaged before a step.

    Attributes: steps (taken so far), history (of the last fit).
    """

    def __init__(self, model, optimizer=None, *, tokenizer=None, schedule=None, clip_norm=None, grad_accum=1):
        if clip_norm is not None and not 0.0 < clip_norm < inf:
            raise ValueError(f"clip_norm = {clip_norm} must be a finite number > 0, or None")
        if isinstance(grad_accum, bool) or not isinstance(grad_accum, int) or grad_accum < 1:
            raise ValueError(f"grad_accum = {grad_accum!r} must be an int of at least 1")
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule must be a function of the step, got {schedule!r}")
        self.model = model
        self.optimizer = Adam() if optimizer is None else optimizer
        self.tokenizer = tokenizer
        self.schedule = schedules.constant() if schedule is None else schedule
        self.clip_norm = clip_norm
        self.grad_accum = grad_accum
        self.steps = 0
        self.history = None
        self._loop = _core.variant.Loop(model.make_core(), self.optimizer.bind(model))
        self._stage = READY
        self._micro = 0             # backward passes since zero_grad
        self._norms = []            # of the last steps by hand, for DivergenceError

    def prepare(self, data, y=None):
        """Documents (or X and y) as compiled data, for fit and evaluate to take many times; and how many were cut.

        Data that is prepared already passes through.
        """
        if isinstance(data, _core.variant.Data):
            return data, 0
        return self.model.make_data(data, y, self.tokenizer)

    # The five moves

    def batch(self, docs, y=None):
        """A batch of all these documents (or of all rows of X and y), for forward."""
        data, _ = self.prepare(docs, y)
        batch = self.model.make_batch(data)
        batch.take(np.arange(data.n_examples), data.n_examples * self.grad_accum)
        return batch

    def zero_grad(self):
        """Set every gradient to zero, and drop a step that was begun."""
        self._loop.zero_grad()
        self._stage, self._micro = READY, 0

    def forward(self, batch):
        """The loss of a batch: the mean over the positions of each document, then over the documents.

        Raises OrderError where gradients of an earlier step would be added to, DivergenceError where the loss is not finite.
        """
        if self._stage not in (READY, FORWARD) and (self._stage != BACKWARD or self._micro >= self.grad_accum):
            self._refuse_forward()
        loss = self._loop.forward(batch) * self.grad_accum
        self._stage = FORWARD
        if not isfinite(loss):
            self._stage = READY if self._micro == 0 else BACKWARD
            self._diverged(loss, loss)
        return loss

    def backward(self):
        """Add the gradient of the last forward's loss to the gradients (its share, with grad_accum)."""
        if self._stage != FORWARD:
            raise OrderError(
                f"backward() was called after {self._stage}, expected forward(): there is no new loss to differentiate"
            )
        self._loop.backward()
        self._micro += 1
        self._stage = BACKWARD

    def clip_grad_norm(self, max_norm=None):
        """Scale the gradients so that their global norm is at most max_norm (default: the trainer's clip_norm).

        Returns the norm before.  Raises DivergenceError, the gradients untouched, where it is not finite.
        """
        max_norm = self.clip_norm if max_norm is None else max_norm
        if max_norm is None or not 0.0 < max_norm < inf:
            raise ValueError(f"max_norm = {max_norm} must be a finite number > 0")
        if self._stage not in (BACKWARD, CLIPPED):
            raise OrderError(
                f"clip_grad_norm() was called after {self._stage}, expected backward(): "
                + ("the step has already used the gradients" if self._stage == STEPPED else "there are no gradients to clip")
            )
        norm = self._finish_gradient()
        if norm > max_norm:
            self._loop.scale_grads(max_norm / norm)
        self._stage = CLIPPED
        return norm

    def step(self):
        """Update the parameters from the gradients, which are left as they are; returns the learning rate used.

        Raises OrderError before a backward, DivergenceError where the gradient norm is not finite; nothing is changed then.
        """
        if self._stage not in (BACKWARD, CLIPPED):
            raise OrderError(
                f"step() was called after {self._stage}, expected backward(): "
                + ("these gradients have been used" if self._stage == STEPPED else "there are no new gradients to step along")
            )
        lr = self._lr()
        if self._stage == BACKWARD:
            self._finish_gradient()
        self._loop.step(lr)
        self._norms = self._norms[-4:] + [self._loop.norm]
        self.steps += 1
        self._stage = STEPPED
        return lr

    def _lr(self):
        return self.optimizer.lr * self.schedule(self.steps)

    def _finish_gradient(self):
        """The norm of the finished gradient, known to be finite."""
        if self._micro < self.grad_accum:       # a window left short: the mean over what it has
            self._loop.scale_grads(self.grad_accum / self._micro)
            self._micro = self.grad_accum
        norm = self._loop.grad_norm()
        if not isfinite(norm):
            self._diverged(self._loop.loss * self.grad_accum, norm)
        return norm

    def _refuse_forward(self):
        if self._stage == STEPPED:
            why = "the gradients of the last step are still there and the new ones would add to them"
            raise OrderError(f"forward() was called after step(), expected zero_grad(): {why}")
        why = f"all {self.grad_accum} batches of this step have been seen (to average over more, say grad_accum)"
        raise OrderError(f"forward() was called after {self._stage}, expected step() or zero_grad(): {why}")

    def _diverged(self, loss, norm, lr=None, norms=None, history=None):
        """Raise DivergenceError for the step at hand."""
        if lr is None:
            try:
                lr = self._lr()
            except ValueError:      # a schedule without a length: the message can do without it
                lr = float("nan")
        norms = self._norms if norms is None else norms
        what = f"the loss is {loss}" if not isfinite(loss) else f"the gradient norm is {norm}"
        before = ", ".join(f"{x:.3g}" for x in norms) or "none"
        raise DivergenceError(
            f"step {self.steps}: {what} (lr {lr:.3g}, norms of the steps before: {before}); the parameters are as they "
            "were before this step. Try a smaller lr, clip_norm=1.0, or look for extreme values in the data",
            self.steps, loss, norm, lr, norms, history,
        )

    # Many steps

    def fit(
        self, data, y=None, *, steps=None, epochs=None, batch_size=1, shuffle=False, seed=0, log_every=0, callbacks=()
    ):
        """Train for `steps` steps, or `epochs` times through the data (default 1); returns the History.

        data: list of documents, or array X with y.  With steps, batches run on cyclically from the last example to the
        first; with epochs, each ends with a smaller batch where the examples do not divide.  shuffle: a new order each
        epoch, from a random stream seeded by `seed`; else the order given.  batch_size: examples a forward pass; a step
        takes grad_accum of them.

        callbacks: objects with any of the methods on_start(trainer), on_log(trainer) at the first step, every
        `log_every` steps and the last, on_step(trainer) after each step, on_end(trainer).

        Ctrl-C ends the run after a whole step, with history.interrupted.  Raises DivergenceError, whose parameters are
        those before the failing step, and OrderError in the middle of a step by hand.
        """
        if self._stage not in (READY, STEPPED):
            raise OrderError(f"fit() was called after {self._stage}, expected step() or zero_grad(): a step is unfinished")
        for name, value in (("steps", steps), ("epochs", epochs), ("batch_size", batch_size), ("log_every", log_every)):
            low = 0 if name == "log_every" else 1
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
                raise ValueError(f"{name} = {value!r} must be an int of at least {low}")
        if steps is not None and epochs is not None:
            raise ValueError(f"steps = {steps} and epochs = {epochs}: say one of them")
        data, cut = self.prepare(data, y)
        order = "shuffled" if shuffle else "given"
        sampler = Sampler(data.n_examples, batch_size, self.grad_accum, order, seed, epochs=steps is None)
        steps = (epochs or 1) * sampler.steps_per_epoch if steps is None else steps
        self.history = History(self.steps)
        self.history.cut = cut
        self._run(data, sampler, steps, log_every, callbacks)
        return self.history

    def _run(self, data, sampler, steps, log_every, callbacks):
        history, batch, start = self.history, self.model.make_batch(data), self.steps
        schedule, origin = self.schedule, 0
        if hasattr(schedule, "for_steps"):
            schedule, origin = schedule.for_steps(steps), start
        clip_norm = inf if self.clip_norm is None else self.clip_norm
        every_step = any(hasattr(callback, "on_step") for callback in callbacks)
        chunk = max(1, FIRST_CHUNK_WORK // (self.model.num_params * sampler.batch_size * self.grad_accum))
        self.zero_grad()
        self._stop_reason = None
        began = time.perf_counter()
        self._call(callbacks, "on_start")
        with _Interrupt() as interrupt:
            while (done := self.steps - start) < steps and self._stop_reason is None:
                count = min(chunk, steps - done)
                if log_every:
                    count = 1 if done == 0 else min(count, log_every - done % log_every)
                count = 1 if every_step else count
                lrs = [self.optimizer.lr * schedule(step - origin) for step in range(self.steps, self.steps + count)]
                lrs, losses, norms = np.array(lrs, np.float64), np.empty(count), np.empty(count)
                indices, splits = sampler.take(done, count)
                before = time.perf_counter()
                taken = self._loop.run(batch, indices, splits, self.grad_accum, lrs, clip_norm, losses, norms)
                after = time.perf_counter()
                self.steps += taken
                history.predictions += data.predictions(indices[: splits[taken * self.grad_accum]])
                history.extend(
                    loss=losses[:taken], lr=lrs[:taken], norm=norms[:taken], clipped=norms[:taken] > clip_norm,
                    seconds=before - began + (after - before) / count * np.arange(1, taken + 1),
                )
                if taken < count:
                    self.zero_grad()
                    history.stop_reason = "diverged"
                    self._diverged(losses[taken], norms[taken], lrs[taken], history.norm[-5:].tolist(), history)
                chunk = max(1, int(count * CHUNK_SECONDS / max(after - before, 1e-9)))
                done += taken
                if every_step:
                    self._call(callbacks, "on_step")
                if log_every and (done == 1 or done % log_every == 0 or done == steps):
                    self._call(callbacks, "on_log")
                if interrupt.seen:
                    self._stop_reason, history.interrupted = "interrupted", True
        history.stop_reason = self._stop_reason or "finished"
        self._call(callbacks, "on_end")

    def _call(self, callbacks, method):
        for callback in callbacks:
            getattr(callback, method, _nothing)(self)

    def stop(self, reason):
        """End the running fit after this step; for callbacks."""
        self._stop_reason = reason

    def evaluate(self, data, y=None):
        """The mean loss per prediction (nats per token) over all of the data; the parameters are not touched."""
        data, _ = self.prepare(data, y)
        loop = _core.variant.Loop(self.model.make_core(), None)
        batch = self.model.make_batch(data)
        total, predictions = 0.0, 0
        size = max(1, EVALUATE_PREDICTIONS // data.longest)
        for first in range(0, data.n_examples, size):
            batch.take(np.arange(first, min(first + size, data.n_examples)), 1.0)
            loop.forward(batch)
            total += loop.total_loss()
            predictions += batch.n_predictions
        return total / predictions


def _nothing(trainer):
    pass


class _Interrupt:
    """Notes Ctrl-C instead of raising it, so that a run ends at a whole step; a second one raises as usual."""

    def __enter__(self):
        self.seen = False
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.previous = signal.signal(signal.SIGINT, self.note)
        return self

    def note(self, number, frame):
        self.seen = True
        signal.signal(signal.SIGINT, self.previous)

    def __exit__(self, *exception):
        if self.main and not self.seen:
            signal.signal(signal.SIGINT, self.previous)
