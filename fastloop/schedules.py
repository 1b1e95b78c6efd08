"""Learning-rate schedules: plain functions from the step (counted from 0) to a factor on the optimiser's lr.

A schedule made without a length takes it from `fit`: it carries a function `for_steps(n)` that gives the schedule for
a run of n steps, counted from where that run began.  Any function of the step serves as well.
"""


def _check_steps(steps):
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an int, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


def constant():
    """Factor 1 at every step."""
    return lambda step: 1.0


def linear(steps=None, end=0.0):
    """From 1 down to `end` in a straight line: 1 - (1 - end) step / steps, and `end` from then on.

    steps: length in steps; None takes it from fit.
    """
    if steps is None:
        def unbound(step):
            raise ValueError("linear() takes its length from fit; by hand say linear(steps=1000)")

        unbound.for_steps = lambda n: linear(n, end)
        return unbound
    _check_steps(steps)
    return lambda step: 1.0 - (1.0 - end) * step / steps if step < steps else end
