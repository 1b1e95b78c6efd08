"""How many threads a step may use, a setting of the process, and how many each chunk of a fit does use.

What a thread then does is compiled (csrc/base/threads.h); nothing here depends on a model or on data.
"""

from __future__ import annotations

import os
from math import inf
from typing import TYPE_CHECKING, ClassVar

from . import _core
from ._check import whole

if TYPE_CHECKING:
    from ._types import Whole

MAX_THREADS = 1024
_num_threads: int       # the setting


def get_num_threads() -> int:
    """The most threads that a step may use: 1 in a build without OpenMP."""
    return _num_threads


def set_num_threads(n: Whole) -> None:
    """Use at most n threads; how many a step really uses depends on its work and on how many the system gives.  The
    results are bit for bit the same whichever it is.

    A build without OpenMP accepts any n and uses one thread.  A forked child begins with one thread; asking for more is
    a RuntimeError where it cannot give up those of its parent (only with old compilers).
    """
    global _num_threads
    n = whole("n", n, 1, MAX_THREADS + 1)
    if n > 1 and _stuck:
        raise RuntimeError(f"{n} threads in this forked child would wait for its parent's for ever; ask for 1, or "
                           "start the child by spawn")
    _num_threads = n if _core.variant.openmp else 1
    _core.variant.set_max_threads(_num_threads)


def default_threads() -> int:
    """FASTLOOP_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs this process may run on."""
    for name in ("FASTLOOP_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value.isdecimal() and 1 <= int(value) <= MAX_THREADS:
            return int(value)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:      # not Linux
        return os.cpu_count() or 1


# A forked child has only the thread that forked, and libgomp would wait for the others for ever: so they are
# released before the fork, and the child begins with one.
_released, _stuck = True, False


def _before_fork() -> None:
    global _released
    _released = _core.variant.release_threads()


def _after_fork() -> None:
    global _stuck
    set_num_threads(1)
    _stuck = not _released


set_num_threads(default_threads())

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


class Pace:
    """Chooses how many threads a chunk of a fit uses: one, or the maximum where that has been faster.  Results are
    bitwise identical either way.

    On a busy machine one thread is better than two: a thread that waits for another which gets no CPU makes a step
    several times as long.  The second chunk, and later one in every TRIAL, is short and tries the other number; where
    its threads had to be woken first, the next chunk tries it again.  Other Python threads keep their own number.

    A trainer keeps one for each number of examples to a step, so that many short fits learn from each other.
    """

    TRIAL: ClassVar[int] = 16
    AWAKE: ClassVar[float] = 0.01       # seconds of a chunk, beside which waking threads (up to 1 ms) is little

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}     # by number of threads, what a prediction took the last time
        self.before: int | None = None          # the threads of the chunk before; between fits they sleep
        self.chunks: int = 0
        self.due: int = 2       # the chunk that tries the other number
        self.tries: int = 0     # chunks that the present trial has had

    def __enter__(self) -> Pace:
        self.before = None
        return self

    def __exit__(self, *exception: object) -> None:
        _core.variant.set_own_threads(MAX_THREADS)

    def choose(self, count: int) -> tuple[int, int]:
        """(threads, steps) of the next chunk, of at most `count` steps."""
        most, self.chunks = get_num_threads(), self.chunks + 1
        if most == 1:
            return 1, count
        threads = most if self.seconds.get(most, inf) < 0.95 * self.seconds.get(1, inf) else 1
        if self.chunks >= self.due:
            threads, count = most + 1 - threads, max(1, count // 8)
            self.tries += 1
        _core.variant.set_own_threads(threads)
        return threads, count

    def note(self, threads: int, seconds: float, predictions: int) -> None:
        """Record what that chunk took."""
        awake = threads in (1, self.before) or seconds > self.AWAKE
        self.before = threads
        if predictions and (awake or self.tries >= 2):
            self.seconds[threads] = seconds / predictions
            if self.tries:
                self.due, self.tries = self.chunks + self.TRIAL, 0
