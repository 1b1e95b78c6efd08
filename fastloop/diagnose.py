"""What a run suffers from, read off its History, and off its Trainer where there is one.  Nothing here changes either.

The thresholds are constants, each with its reason.  They are set so that a healthy run, noisy or short, gives nothing:
a symptom is named when it is plain, not when it is possible.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import reference
from .history import History

if TYPE_CHECKING:
    from ._types import Floats
    from .trainer import Trainer

ENOUGH_STEPS = 20       # fewer say nothing about a trend; only what is not finite is reported
SURE = 5.0              # standard errors of a difference between tenths of a run; the worst of ten is looked for
RISEN = 0.1             # of the loss at the start: the end must lie so far above it; batches alone give 2 or 3 %
LOST = 0.5              # of what was gained, lost again: a hard last part of the data takes far less
JUMP_LOSS = 3.0         # a tenth of the run at so many times the first loss, with gradients so many times the first:
JUMP_NORM = 20.0        # weights thrown far off (healthy norms grow from small weights, but the loss falls with it)
FLAT_STEPS = 200        # small initial weights make a plateau, on which a shorter run may be well
FLAT = 0.005            # of the loss at the start, gained in the whole run; healthy ones gain 10 % and more
NOTHING = 0.001         # the same, for a run of which nothing more is known than that it does not learn
PROMISED = 0.1          # of the loss at the start: what the steps would gain if every gradient were the true one
START_ERROR = 0.03      # standard error, relative to the mean, to which the loss at the start is to be known
VANISHED = 1e-5         # gradient norm over loss, with weights of the usual size; healthy runs begin at 0.01 to 0.1
FADED = 1e-3            # late gradient norm over the first, where the loss has not moved
VANISHED_TENSOR = 1e-6  # rms gradient of a tensor over that of the largest; attention at its start has 1e-3
EXPLODED = 100.0        # times every norm before, or last tenth over first; heavy-tailed batches give 10
ALWAYS = 0.95           # of the steps clipped: the norm is then set by clip_norm and carries nothing of the gradient
OVERFIT = 0.05          # of the best validation loss; from one evaluation to the next noise moves it by 1 to 2 %
SEEN = 100              # predictions for each row of an embedding, before one that was never used is reported
SILENT_STEPS = 300      # without any gradient: a unit that no example reaches, not one that is rarely active
DEAD_SHARE = 0.5        # of the units of a layer; some dead ones are usual with ReLU, and cost no more than their share
ACCUMULATED = 20.0      # times the first norm: sums of n gradients grow by sqrt(n) to n, single ones rarely tenfold
SMOOTH = 0.05           # change of the norm from step to step, relative to it; batches of up to 64 change it by 0.1
STILL_GROWING = 1.5     # second half over second tenth: sums go on growing, gradients of small weights level off
SWING = 0.2, 0.5        # of the loss at the start: an undamped loss falls below the one and late in the run is back
                        # above the other; a healthy loss does not come back, with momentum neither
TURNS = 0.5             # turning points of the norm per step; noise has 2/3
TINY = 1e-300           # in place of a zero that is divided by
RARE = 1e-12            # of the largest second moment: a row's own, when it has been used, is above


@dataclass(frozen=True)
class Finding:
    """One symptom.  name: a fixed word for programs; message: a sentence with the numbers; numbers: the same as a dict;
    advice: what to try."""

    name: str
    message: str
    numbers: dict[str, Any] = field(hash=False)
    advice: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}\n    {self.advice}"


class Diagnosis(list[Finding]):
    """The findings, a list; as text a paragraph each, or one line that says that there are none."""

    n_steps: int

    def __init__(self, findings: Iterable[Finding], n_steps: int) -> None:
        super().__init__(findings)
        self.n_steps = n_steps

    def __str__(self) -> str:
        if self:
            return "\n".join(map(str, self))
        text = f"nothing found in {self.n_steps:,} steps"
        few = f" (most symptoms need {ENOUGH_STEPS} steps to show, some {FLAT_STEPS})"
        return text + few if self.n_steps < FLAT_STEPS else text

    def __repr__(self) -> str:
        return str(self)


@np.errstate(over="ignore", under="ignore")     # norms of a diverging run, and their squares
def diagnose(run: History | Trainer) -> Diagnosis:
    """Name the symptoms of a run that goes wrong.

    run: a History, or a Trainer after `fit`, whose optimiser's moments are examined too.  In a History of your
    own loop, filled by `append`, a column that was not given is ignored.
    Returns a Diagnosis: a list of Finding, empty for a healthy run; print it to read it.  The names are diverging,
    lr_zero, lr_too_large, lr_too_small, stalled, never_zeroed, exploding_gradients, vanishing_gradients, clipping,
    overfitting and dead_rows.
    Raises TypeError for something else, such as a model, and ValueError for a Trainer that has no history yet.
    """
    if not isinstance(run, History) and not (hasattr(run, "history") and hasattr(run, "model")):
        raise TypeError(f"run = {run!r:.80} must be a History, as fit returns it, or a Trainer after fit")
    trainer: Any = None if isinstance(run, History) else run
    history: Any = run if trainer is None else trainer.history
    if history is None:
        raise ValueError("this trainer has no history yet: call fit, then diagnose")
    finite = np.isfinite(history.loss) & ~np.isinf(history.norm)
    n = len(history) if finite.all() else int(np.argmin(finite))    # up to the first that is not
    view = _View(history, n)
    findings = _not_finite(view) or _zero(view)
    if n >= ENOUGH_STEPS and view.lr.any():
        diverging = [] if findings else _diverging(view)
        # Gradients that were never zeroed explain whatever the loss does.
        findings += _never_zeroed(view) or diverging + _too_large(view) + _flat(view) + _exploding(view)
        findings += _clipping(view, trainer) + _overfitting(view)
        if trainer is not None:
            findings += _vanishing_tensors(trainer) + _dead_rows(trainer)
    return Diagnosis(findings, len(history))


class _View:
    """The finite part of a history, and what several symptoms are read from."""

    def __init__(self, history: History, n: int) -> None:
        self.history, self.n = history, n
        self.loss, self.lr, self.norm = (getattr(history, name)[:n] for name in ("loss", "lr", "norm"))
        # A loop may record norms for all steps or none.
        self.has_norm = n > 0 and np.isfinite(self.norm).all()
        self.fresh = history.start_step == 0        # else it began with weights that may be good already
        tenths = np.array_split(np.arange(n), 10)
        if n >= ENOUGH_STEPS:
            self.losses, self.errors = np.array([_mean(self.loss[tenth]) for tenth in tenths]).T
            self.norms = np.array([np.median(self.norm[tenth]) for tenth in tenths])
            worst = tenths[int(np.argmax(self.losses))]
            self.worst = slice(worst[0], max(worst[-1] + 1, worst[0] + ENOUGH_STEPS))
            self.start_size, self.start, self.start_error = self._start()
            self.end = float(self.losses[-1])

    def _start(self) -> tuple[int, float, float]:
        """How many steps make the start, their mean loss and its standard error: as few as noise allows, since the loss
        soon falls."""
        size = 10
        while True:
            start, error = _mean(self.loss[:size])
            if error <= START_ERROR * abs(start) or 2 * size > self.n // 4:
                return size, start, error
            size *= 2

    @property
    def largest_lr(self) -> float:
        return float(np.nanmax(self.lr)) if np.isfinite(self.lr).any() else np.nan


def _mean(x: Floats) -> tuple[float, float]:
    with np.errstate(over="ignore", invalid="ignore"):      # losses near 1e308 in a run that diverges
        return float(x.mean()), float(x.std() / np.sqrt(len(x)))


def _with_lr(lr: float, text: str) -> str:
    return text if np.isnan(lr) else f"{text} at a learning rate of {lr:.3g}"


CALM = "Try a learning rate a tenth as large, clip_norm=1.0, or a warm-up; look for extreme values in the data."


def _not_finite(view: _View) -> list[Finding]:
    history = view.history
    if history.stop_reason != "diverged" and view.n == len(history):
        return []
    norms = view.norm[-5:].tolist()
    numbers = {
        "step": view.n + 1, "lr": view.largest_lr,
        "last_loss": float(view.loss[-1]) if view.n else np.nan, "last_norms": norms,
    }
    before = ", ".join(f"{norm:.3g}" for norm in norms) or "none"
    message = f"step {numbers['step']} gave a loss or gradient norm that is not finite (norms before it: {before})"
    return [Finding("diverging", _with_lr(view.largest_lr, message), numbers, CALM)]


def _zero(view: _View) -> list[Finding]:
    """Learning rates that are all 0, as after the end of a schedule: then the rest of the history says nothing."""
    if not view.n or view.lr.any():
        return []
    start = view.history.start_step
    message = f"the learning rate was 0 at all {view.n:,} steps, which began after step {start:,}: nothing was learnt"
    advice = (
        "Give the Trainer a schedule that takes its length from each fit, such as schedules.linear() without steps, or "
        "one that is not at its end."
    )
    return [Finding("lr_zero", message, {"steps": view.n, "start_step": start}, advice)]


def _diverging(view: _View) -> list[Finding]:
    best = int(np.argmin(view.losses))
    lowest, error = view.losses[best], view.errors[best]
    gained, lost = view.start - lowest, view.end - lowest
    sure = SURE * np.hypot(view.start_error, view.errors[-1])
    # Where it rises exponentially the error of a mean is as large as the mean, but every single loss is above.
    if view.end - view.start > RISEN * abs(view.start) and (
        view.end - view.start > sure or view.loss[-max(10, view.n // 10) :].min() > view.start
    ):
        message = f"the loss began with {view.loss[0]:.4g} and ended at {view.end:.4g} (mean of the last tenth)"
    elif (
        gained > RISEN * abs(view.start) and lost > max(LOST * gained, SURE * np.hypot(error, view.errors[-1]))
        and view.start <= JUMP_LOSS * view.loss[0]      # else it fell from where the first steps had thrown it
    ):
        message = f"the loss fell from {view.start:.4g} to {lowest:.4g}, then rose again, to {view.end:.4g}"
    else:
        return []
    numbers = {"first": float(view.loss[0]), "start": view.start, "best": float(lowest), "end": view.end}
    numbers["lr"] = view.largest_lr
    return [Finding("diverging", _with_lr(view.largest_lr, message), numbers, CALM)]


def _too_large(view: _View) -> list[Finding]:
    if not (view.fresh and view.has_norm):
        return []
    first, worst = view.loss[0], view.loss[view.worst]
    norm = float(view.norms.max() / max(view.norm[0], TINY))
    # Losses of single examples vary by orders of magnitude, and the first may be small by luck: so nearly all of the
    # worst tenth must lie above it.
    if view.losses.max() <= JUMP_LOSS * first or norm <= JUMP_NORM or np.quantile(worst, 0.1) <= first:
        return []
    numbers = {
        "first_loss": float(first), "worst_tenth": float(view.losses.max()), "norm_ratio": norm, "lr": view.largest_lr,
    }
    message = (
        f"the loss went up from {first:.4g} to {view.losses.max():.4g} (mean of a tenth of the run) and the gradient "
        f"norm to {norm:.3g} times its first value"
    )
    advice = "Try a learning rate a tenth or a hundredth as large; fastloop.lr_find searches for one."
    return [Finding("lr_too_large", _with_lr(view.largest_lr, message), numbers, advice)]


def _never_zeroed(view: _View) -> list[Finding]:
    """Gradients that pile up: the recorded norm is that of a sum, which grows, and moves by one gradient a step.

    Where the sum pulls the weights back (a small convex problem), it acts as momentum without friction: norm and loss
    swing for ever.
    """
    if not (view.has_norm and view.fresh):
        return []
    norm, loss, half = view.norm, view.loss, view.n // 2
    first, late = max(float(norm[0]), TINY), float(np.median(norm[half:]))
    numbers = {
        "first_norm": first, "late_norm": late, "growth": late / first,
        "relative_change": float(np.median(np.abs(np.diff(norm)))) / max(late, TINY),
    }
    advice = "Set the gradients to zero before each backward pass (zero_grad), or overwrite them."
    rise = np.median(loss[half:]) / max(abs(loss[0]), TINY)
    # A loss that rises with the norm is divergence, whatever its cause.
    if (
        numbers["growth"] >= ACCUMULATED and numbers["relative_change"] <= SMOOTH and rise <= numbers["growth"] / 5.0
        and late >= STILL_GROWING * np.median(norm[view.n // 10 : view.n // 5])
    ):
        message = (
            f"the gradient norm grew from {first:.3g} to {late:.3g}, and by only {numbers['relative_change']:.2g} of "
            "itself a step, as a sum of gradients does"
        )
        return [Finding("never_zeroed", message, numbers, advice)]
    slope = np.sign(np.diff(norm))
    numbers["turns"] = float((slope[1:] != slope[:-1]).mean())
    tenth = view.n // 10
    start, low, back = loss[:tenth].max(), loss[tenth:].min(), loss[half:].max()
    numbers |= {"loss_start": float(start), "loss_low": float(low), "loss_back": float(back)}
    if (
        norm[1] >= 1.3 * first and late >= 1.5 * first and numbers["turns"] <= TURNS
        and low <= SWING[0] * start and back >= SWING[1] * start
    ):
        message = (
            f"the gradient norm began with {norm[0]:.3g}, {norm[1]:.3g}, {norm[2]:.3g} and never settled, and the loss "
            f"swings: from {start:.4g} down to {low:.4g} and back to {back:.4g} in the second half"
        )
        return [Finding("never_zeroed", message, numbers, advice)]
    return []


def _flat(view: _View) -> list[Finding]:
    """A run that never began to learn, by its likeliest cause."""
    gain = float(view.start - view.losses[-2:].mean())
    error = np.hypot(view.start_error, view.errors[-1])
    if not view.fresh or view.n < FLAT_STEPS or gain > FLAT * abs(view.start) or error > 0.05 * abs(view.start):
        return []
    numbers = {"start": view.start, "end": view.end, "gain": gain, "lr": view.largest_lr}
    message = f"the loss went from {view.start:.4g} to {view.end:.4g} in {view.n:,} steps"
    if view.has_norm:
        first, last = float(view.norm[0]), float(np.median(view.norm[-(view.n // 4) :]))
        # To first order a step gains lr norm^2 with SGD, and at least lr norm with Adam, whose steps are lr in every
        # parameter.
        promised = float(np.sum(view.lr * np.minimum(view.norm, view.norm**2)))
        numbers |= {"first_norm": first, "last_norm": last, "promised": promised}
        if last < max(VANISHED * abs(view.end), FADED * first):
            message += f", and the gradient norm from {first:.3g} to {last:.3g}"
            advice = "Look for weights of zero, units that are all saturated or dead, and layers without a gradient."
            return [Finding("vanishing_gradients", message, numbers, advice)]
        if promised < PROMISED * abs(view.start):
            message = _with_lr(view.largest_lr, message)
            message += f", where a gradient norm of {last:.3g} promises a gain of {promised:.2g} in all"
            advice = "Try a learning rate ten or a hundred times as large; fastloop.lr_find searches for one."
            return [Finding("lr_too_small", message, numbers, advice)]
        message += f", with a gradient norm of {last:.3g}"
    if gain > 2.0 * error + NOTHING * abs(view.start):
        return []       # slow, and no more than that
    advice = (
        "Try to overfit a single batch: if that fails too, look at the learning rate and the gradients, else at "
        "whether the targets belong to the inputs."
    )
    return [Finding("stalled", _with_lr(view.largest_lr, message), numbers, advice)]


def _exploding(view: _View) -> list[Finding]:
    if not view.has_norm:
        return []
    before = np.maximum.accumulate(view.norm)[:-1]
    jumps = view.norm[1:] / np.maximum(before, TINY)
    jumps[: ENOUGH_STEPS // 2] = 0.0        # the first few norms do not show what is usual
    at = int(np.argmax(jumps)) + 1
    growth = float(view.norms[-1] / max(view.norms[0], TINY))
    numbers = {
        "step": at + 1, "norm": float(view.norm[at]), "largest_before": float(before[at - 1]),
        "first_tenth": float(view.norms[0]), "last_tenth": float(view.norms[-1]),
    }
    if jumps.max() > EXPLODED:
        message = f"the gradient norm was {view.norm[at]:.3g} at step {at + 1:,}, at most {before[at - 1]:.3g} before"
    elif growth > EXPLODED:
        message = f"the median gradient norm grew from {view.norms[0]:.3g} (first tenth) to {view.norms[-1]:.3g} (last)"
    else:
        return []
    clip_norm = _round_up(view.norms[0])
    advice = f"Try clip_norm={clip_norm:g}, and look at what the model saw where the norm leaves its usual range."
    return [Finding("exploding_gradients", message, numbers, advice)]


def _clipping(view: _View, trainer: Trainer | None) -> list[Finding]:
    share = float(view.history.clipped[: view.n].mean())
    if share < ALWAYS:
        return []
    clip_norm = None if trainer is None else trainer.clip_norm
    numbers: dict[str, Any] = {"share": share, "median_norm": float(np.median(view.norm)), "clip_norm": clip_norm}
    to = "" if clip_norm is None else f" to {clip_norm:g}"
    message = f"{share:.0%} of the steps were clipped{to}; the median norm before is {numbers['median_norm']:.3g}"
    advice = (
        f"Every step has the same length then, large gradient or small; to catch only the large ones try "
        f"clip_norm={_round_up(numbers['median_norm']):g}."
    )
    return [Finding("clipping", message, numbers, advice)]


def _round_up(norm: float) -> float:
    """A little above norm, in one digit."""
    return float(f"{2.0 * norm:.0e}") if np.isfinite(norm) else 1.0


def _overfitting(view: _View) -> list[Finding]:
    history = view.history
    evaluations = [(step, loss) for step, loss in history.evaluations if np.isfinite(loss)]
    if len(evaluations) < 3:
        return []
    steps, losses = (np.array(column) for column in zip(*evaluations, strict=True))
    best = int(np.argmin(losses))
    rise = losses[-1] - losses[best]
    if best == len(losses) - 1 or rise <= OVERFIT * abs(losses[best]):
        return []
    # The training loss around the best evaluation and at the end, each over the steps between two evaluations.
    width = max(1, int(np.diff(steps).max()))
    middle, last = steps[best], steps[-1]
    around = view.loss[max(0, middle - width) : max(middle + width, 1)]
    ending = view.loss[max(0, last - width) : last]
    if not around.size or not ending.size or ending.mean() >= around.mean():
        return []
    numbers = {
        "best": float(losses[best]), "best_step": int(steps[best]), "last": float(losses[-1]),
        "train_then": float(around.mean()), "train_last": float(ending.mean()),
    }
    message = (
        f"the validation loss was best at step {steps[best]:,} ({losses[best]:.4g}) and ended at {losses[-1]:.4g}, "
        f"while the training loss fell from {around.mean():.4g} to {ending.mean():.4g}"
    )
    advice = "Stop early (patience), use more data, a smaller model, or weight decay (AdamW)."
    return [Finding("overfitting", message, numbers, advice)]


def _moments(trainer: Trainer, slot: str) -> dict[str, Floats]:
    """The optimiser's arrays of that name, by tensor; empty where it keeps none."""
    state = trainer.optimizer.state_dict()["state"]
    return {name: state[i][slot] for i, name in enumerate(trainer.model.params) if slot in state.get(i, {})}


def _vanishing_tensors(trainer: Trainer) -> list[Finding]:
    rms = {name: float(np.sqrt(v.mean())) for name, v in _moments(trainer, "exp_avg_sq").items()}
    best = max(rms, key=rms.__getitem__, default="")
    faint = [name for name, size in rms.items() if size < VANISHED_TENSOR * rms[best]]
    if not faint:
        return []
    numbers = {"tensors": faint, "rms": [rms[name] for name in faint], "largest": rms[best]}
    sizes = ", ".join(f"{rms[name]:.3g} in {name}" for name in faint[:4]) + (", ..." if len(faint) > 4 else "")
    message = f"the rms gradient of {len(faint)} of {len(rms)} tensors is next to nothing: {sizes}"
    message += f", against {rms[best]:.3g} in {best}"
    advice = "Look at the weights and units between them and the loss: too small, saturated or dead."
    return [Finding("vanishing_gradients", message, numbers, advice)]


def _dead_rows(trainer: Trainer) -> list[Finding]:
    """Rows that nothing reaches, told by the optimiser's moments: the gradients themselves are gone after a step."""
    findings = []
    beta, beta2 = getattr(trainer.optimizer, "betas", (0.0, 0.0))
    forgotten = reference.TINY[trainer.model.dtype.itemsize][0]     # a moment that decays below this becomes 0
    v, m = _moments(trainer, "exp_avg_sq"), _moments(trainer, "exp_avg")
    for name in m:
        if m[name].ndim != 2 or name == "wpe":      # positions past the longest document are no fault
            continue
        rows = np.abs(m[name]).max(axis=1)
        if name == "wte":
            # A rare token is not a dead one: only rows that were never used, in a run where all should have been.
            if trainer.history.predictions < SEEN * len(rows):
                continue
            # In a long run the moment of a row that was used early may have decayed to nothing.
            if float(v[name].max()) * RARE * beta2**trainer.optimizer.t < forgotten:
                continue
            dead, why = ~v[name].any(axis=1), "never had a gradient"
            advice = "These tokens do not occur in what was trained on: make the tokenizer from the training documents."
        else:
            if trainer.steps < SILENT_STEPS or beta < 0.5:      # a short memory holds one batch and little more
                continue
            if beta**SILENT_STEPS * float(rows.max()) < forgotten:
                continue
            dead, why = rows <= beta**SILENT_STEPS * rows.max(), f"had no gradient for {SILENT_STEPS} steps or more"
            advice = "What no example switches on stays off: try a smaller learning rate or smaller initial weights."
            if dead.mean() < DEAD_SHARE:
                continue
        if dead.any() and not dead.all():       # all: a tensor that nothing reaches, see above
            ids = np.flatnonzero(dead).tolist()
            shown = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
            message = f"{len(ids)} of {len(rows)} rows of {name} {why}: {shown}"
            findings.append(Finding("dead_rows", message, {"tensor": name, "rows": ids, "of": len(rows)}, advice))
    return findings
