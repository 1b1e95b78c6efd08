"""Learning-rate schedules: plain functions from the step (counted from 0) to a factor on the optimiser's lr.

Any function of the step will do whose values are finite and at least 0 (any other value raises at its step).  Those
made here compose (`warmup` in front of any, `join` end to end) and carry two attributes more.  `spec` describes the
schedule in plain values that JSON can hold, and `from_spec` makes it again; a schedule that contains a function of the
user's own has none.  One made without a length takes it from `fit`: its `for_steps(n)` gives the schedule for a run of
n steps, counted from where that run began.

`end` is always the factor that is reached after the last step and kept from then on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import cos, nan, pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from ._check import number, whole

if TYPE_CHECKING:
    from ._types import Floats, Number, Whole
    from ._types import Schedule as Function

__all__ = [
    "constant",
    "cosine",
    "exponential",
    "from_spec",
    "inverse_sqrt",
    "join",
    "linear",
    "one_cycle",
    "step_decay",
    "warmup",
    "warmup_stable_decay",
]


def constant(factor: Number = 1.0) -> Schedule:
    """The same factor at every step.

    factor: at least 0.
    """
    factor = number("factor", factor, 0.0)
    return _describe(lambda step: factor, constant, factor=factor)


def linear(steps: Whole | None = None, end: Number = 0.0) -> Schedule:
    """From 1 down to `end` in a straight line: 1 - (1 - end) step / steps.

    steps: length, at least 1; None takes it from fit.  end: at least 0.
    """
    end = number("end", end, 0.0)
    if steps is None:
        return _unbound(linear, end=end)
    steps = whole("steps", steps)
    slope = 1.0 - end
    return _describe(lambda step: 1.0 - slope * step / steps if step < steps else end, linear, steps=steps, end=end)


def cosine(steps: Whole | None = None, end: Number = 0.0) -> Schedule:
    """From 1 down to `end` along half a cosine: end + (1 - end) (1 + cos(pi step / steps)) / 2.

    steps: length, at least 1; None takes it from fit.  end: the floor, at least 0.

    Loshchilov and Hutter 2017 (SGDR), equation 5, without restarts; for restarts join several.
    """
    end = number("end", end, 0.0)
    if steps is None:
        return _unbound(cosine, end=end)
    steps = whole("steps", steps)

    def factor(step: int) -> float:
        return end + (1.0 - end) * 0.5 * (1.0 + cos(pi * step / steps)) if step < steps else end

    return _describe(factor, cosine, steps=steps, end=end)


def exponential(steps: Whole | None = None, end: Number = 0.01) -> Schedule:
    """From 1 down to `end` by the same ratio each step: end^(step / steps).

    steps: length, at least 1; None takes it from fit.  end: greater than 0.

    The ratio of one step to the next, torch's gamma, is end^(1 / steps).
    """
    end = number("end", end, 0.0, above=True)
    if steps is None:
        return _unbound(exponential, end=end)
    steps = whole("steps", steps)
    return _describe(lambda step: end ** (step / steps) if step < steps else end, exponential, steps=steps, end=end)


def step_decay(every: Whole, gamma: Number = 0.1) -> Schedule:
    """A staircase: gamma^floor(step / every).

    every: steps from one fall to the next, at least 1.  gamma: ratio of a fall, greater than 0.
    """
    every, gamma = whole("every", every), number("gamma", gamma, 0.0, above=True)
    return _describe(lambda step: gamma ** (step // every), step_decay, every=every, gamma=gamma)


def inverse_sqrt(timescale: Whole) -> Schedule:
    """From 1 down as one over the root of the step, without end: sqrt(timescale / (timescale + step)).

    timescale: steps, at least 1; after three times as many the factor is a half.

    warmup(W - 1, inverse_sqrt(W)) is the schedule of Vaswani et al. 2017, equation 3, for W warm-up steps, divided by
    its peak.
    """
    timescale = whole("timescale", timescale)
    return _describe(lambda step: sqrt(timescale / (timescale + step)), inverse_sqrt, timescale=timescale)


def one_cycle(
    steps: Whole | None = None, pct_start: Number = 0.3, div_factor: Number = 25.0, final_div_factor: Number = 1e4
) -> Schedule:
    """Up to 1 and down again, each along half a cosine; the last step has the smallest factor.

    With `low` = 1 / div_factor, from low at step 0 to 1 at step pct_start steps - 1, then to low / final_div_factor at
    step steps - 1, kept from then on.

    steps: length, at least 2; None takes it from fit.  pct_start: share of the steps that rise, in [0, 1).
    div_factor, final_div_factor: greater than 0.

    Smith and Topin 2018 (super-convergence), with the names and the values of torch's OneCycleLR at two phases; the
    momentum stays as it is.
    """
    pct_start = number("pct_start", pct_start, 0, 1)
    low = 1.0 / number("div_factor", div_factor, 0.0, above=True)
    end = low / number("final_div_factor", final_div_factor, 0.0, above=True)
    shape = {"pct_start": pct_start, "div_factor": float(div_factor), "final_div_factor": float(final_div_factor)}
    if steps is None:
        return _unbound(one_cycle, **shape)
    steps = whole("steps", steps, 2)
    peak, last = pct_start * steps - 1.0, steps - 1

    def factor(step: int) -> float:
        if step < peak:
            return 1.0 + (low - 1.0) * 0.5 * (1.0 + cos(pi * step / peak))
        return end + (1.0 - end) * 0.5 * (1.0 + cos(pi * (step - peak) / (last - peak))) if step < last else end

    return _describe(factor, one_cycle, steps=steps, **shape)


def warmup_stable_decay(warmup: Whole, decay: Whole, steps: Whole | None = None, end: Number = 0.0) -> Schedule:
    """Up as `warmup` does, then 1, and over the last `decay` steps down to `end` in a straight line.

    warmup, decay: steps, at least 0 and 1.  steps: of the whole, at least warmup + decay; None takes it from fit.
    end: at least 0.

    Hu et al. 2024 (MiniCPM), section 4, who name it and fall exponentially; the straight line is that of Hägele
    et al. 2024, section 4.
    """
    warmup, decay, end = whole("warmup", warmup, 0), whole("decay", decay), number("end", end, 0.0)
    if steps is None:
        return _unbound(warmup_stable_decay, warmup=warmup, decay=decay, end=end)
    steps = whole("steps", steps)
    if steps < warmup + decay:
        raise ValueError(f"steps = {steps} has no room for a warm-up of {warmup} and a decay of {decay}")
    turn = steps - decay

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if step < turn:
            return 1.0
        return 1.0 - (1.0 - end) * (step - turn) / decay if step < steps else end

    return _describe(factor, warmup_stable_decay, warmup=warmup, decay=decay, steps=steps, end=end)


def warmup(steps: Whole, schedule: Function | None = None) -> Schedule:
    """A straight line up to a schedule, which then begins: (step + 1) / (steps + 1) times its first factor.

    steps: length of the line, at least 0.  schedule: any function of the step, counted from the end of the line
    (default constant()); one that takes its length from fit gets what the line leaves.

    The form is nanoGPT's: the factor of step 0 is not 0, and the peak, at step `steps`, is not taken twice.
    """
    steps = whole("steps", steps, 0)
    schedule = constant() if schedule is None else _function("schedule", schedule)
    bind = getattr(schedule, "for_steps", None)
    if bind is not None:
        return _unbound(warmup, _rest(steps, lambda rest: warmup(steps, bind(rest))),
                        steps=steps, schedule=schedule)

    then = plain(schedule)

    def factor(step: int) -> float:
        return then(step - steps) if step >= steps else then(0) * (step + 1) / (steps + 1)

    return _describe(factor, warmup, steps=steps, schedule=schedule)


def join(schedules: Sequence[Function], boundaries: Sequence[Whole]) -> Schedule:
    """Schedules end to end: each is counted from the boundary where it begins.

    schedules: list of functions of the step, at least one.  boundaries: the steps at which the second and those after
    it begin, rising, one fewer than schedules.  Where one takes its length from fit, it gets the distance to the next
    boundary, and the last what the boundaries leave of the run.
    """
    schedules = [_function(f"schedules[{i}]", s) for i, s in enumerate(_list("schedules", schedules))]
    boundaries = [whole(f"boundaries[{i}]", b) for i, b in enumerate(_list("boundaries", boundaries))]
    if len(boundaries) != len(schedules) - 1:
        raise ValueError(f"{len(schedules)} schedules need {len(schedules) - 1} boundaries, got {len(boundaries)}")
    starts = [0, *boundaries]
    for i, (a, b) in enumerate(zip(starts, boundaries, strict=False)):
        if b <= a:
            raise ValueError(f"boundaries[{i}] = {b} must be greater than {a}")
        part = schedules[i]
        if hasattr(part, "for_steps"):
            schedules[i] = part.for_steps(b - a)
    *before, last = schedules
    if hasattr(last, "for_steps"):
        return _unbound(join, _rest(starts[-1], lambda rest: join([*before, last.for_steps(rest)], boundaries)),
                        schedules=schedules, boundaries=boundaries)

    parts = list(map(plain, schedules))

    def factor(step: int) -> float:
        i = max(0, bisect_right(starts, step) - 1)
        return parts[i](step - starts[i])

    return _describe(factor, join, schedules=schedules, boundaries=boundaries)


def from_spec(spec: Mapping[str, Any]) -> Schedule:
    """The schedule that a `spec` describes.

    Raises ValueError where it is not one that this module writes.
    """
    try:
        arguments = {name: _from_plain(value) for name, value in spec.items()}
        return _MAKERS[arguments.pop("name")](**arguments)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not the description of a schedule: {spec!r}") from error


_MAKERS: dict[str, Callable[..., Schedule]] = {
    make.__name__: make
    for make in (
        constant, cosine, exponential, inverse_sqrt, join, linear, one_cycle, step_decay, warmup, warmup_stable_decay,
    )
}


def rate(lr: float, factor: Any) -> float:
    """lr times what a schedule gave, as a float; NaN where that is no real number."""
    if type(factor) is float:
        return lr * factor
    try:
        with np.errstate(all="ignore"):     # of NumPy's numbers
            product = lr * factor
        return nan if isinstance(product, complex) else float(product)
    except (TypeError, ValueError, ArithmeticError):
        return nan


def rates(lr: float, factors: Iterable[Any]) -> Floats:
    """The same for many: float64 (len(factors),)."""
    try:
        with np.errstate(all="ignore"):
            lrs = np.array([lr * factor for factor in factors])
        if lrs.dtype.kind == "f" and lrs.ndim == 1:
            return lrs.astype(np.float64, copy=False)
    except (TypeError, ValueError, ArithmeticError):
        pass
    return np.array([rate(lr, factor) for factor in factors])


def is_maker(value: object) -> bool:
    """Whether value is a function of this module that makes schedules, such as linear, rather than a schedule."""
    return value in _MAKERS.values()


def _from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_plain(v) for v in value]
    return from_spec(value) if isinstance(value, dict) else value


def _to_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_plain(v) for v in value]
    return value.spec if callable(value) else value


class Schedule:
    """A schedule that a function of this module made; repr, copy and pickle repeat that call."""

    # Not every schedule has these: ask with hasattr.
    spec: dict[str, Any]
    for_steps: Callable[[int], Schedule]

    def __init__(self, factor: Function, make: Callable[..., Schedule], arguments: dict[str, Any]) -> None:
        self._factor, self._made = factor, (make, arguments)
        with suppress(AttributeError):      # a user's own function has no spec
            self.spec = {"name": make.__name__, **{name: _to_plain(value) for name, value in arguments.items()}}

    def __call__(self, step: int) -> float:
        return self._factor(step)

    def __reduce__(self) -> tuple[object, ...]:
        return _call, self._made

    def __repr__(self) -> str:
        make, arguments = self._made
        return f"{make.__name__}({', '.join(f'{k}={v!r}' for k, v in arguments.items() if v is not None)})"


def plain(schedule: Function) -> Function:
    """The same schedule as a Python function, for loops in which 0.1 us a call counts."""
    return schedule._factor if isinstance(schedule, Schedule) else schedule


def _call(make: Callable[..., Schedule], arguments: dict[str, Any]) -> Schedule:
    return make(**arguments)


def _describe(factor: Function, make: Callable[..., Schedule], /, **arguments: Any) -> Schedule:
    return Schedule(factor, make, arguments)


def _unbound(
    make: Callable[..., Schedule], for_steps: Callable[[int], Schedule] | None = None, /, **arguments: Any
) -> Schedule:
    """What stands for a schedule until fit gives it a length."""
    name = make.__name__

    def unbound(step: int) -> float:
        raise ValueError(f"{name}() takes its length from fit; by hand give it one, as in linear(steps=1000)")

    if for_steps is None:
        schedule = Schedule(unbound, make, {"steps": None, **arguments})
        schedule.for_steps = lambda n: make(steps=n, **arguments)
    else:
        schedule = Schedule(unbound, make, arguments)
        schedule.for_steps = for_steps
    return schedule


def _rest(used: Whole, bind: Callable[[int], Schedule]) -> Callable[[int], Schedule]:
    """A for_steps that passes on the steps of a run that come after the first `used`."""
    def for_steps(n: int) -> Schedule:
        if whole("steps", n) <= used:
            raise ValueError(f"a run of {n} steps leaves no steps to a schedule whose last part begins at step {used}")
        return bind(n - used)

    return for_steps


def _function(name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"{name} must be a function of the step, got {value!r}")
    return value


def _list(name: str, value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a list, got {value!r}")
    return value
