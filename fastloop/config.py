"""Threads, and what this installation is."""

import os
import sys

import numpy as np

from . import _core
from ._check import whole

MAX_THREADS = 1024


def get_num_threads():
    """The most threads that a step may use: 1 in a build without OpenMP."""
    return _num_threads


def set_num_threads(n):
    """Use at most n threads; how many a step really uses depends on its work and on how many the system gives, its bits
    on none of these.

    A build without OpenMP takes any n, and stays at one.  A forked child begins with one; it may have more unless its
    parent's cannot be let go of, which is a RuntimeError (only with old compilers).
    """
    global _num_threads
    n = whole("n", n, 1, MAX_THREADS + 1)
    if n > 1 and _stuck:
        raise RuntimeError(f"{n} threads in this forked child would wait for its parent's for ever; needed is 1, or a "
                           "child that is started by spawn")
    _num_threads = n if _core.variant.openmp else 1
    _core.variant.set_max_threads(_num_threads)


def _default_threads():
    """FASTLOOP_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs this process may run on."""
    for name in ("FASTLOOP_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value.isdecimal() and 1 <= int(value) <= MAX_THREADS:
            return int(value)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:      # not Linux
        return os.cpu_count() or 1


def show_config(file=None):
    """Print the version, the chosen instruction set, compiler, threads and NumPy; what a bug report needs."""
    from . import __version__

    rows = {
        "fastloop": __version__,
        "instruction set": f"{_core.isa} (this CPU: {', '.join(_core.supported)})",
        "compiler": _core.compiler,
        "threads": f"{get_num_threads()}{'' if _core.variant.openmp else ' (built without OpenMP)'}",
        "numpy": np.__version__,
        "python": f"{sys.version.split()[0]} on {sys.platform}",
    }
    for name, value in rows.items():
        print(f"{name:16} {value}", file=file)


# A forked child has only the thread that forked, and libgomp would wait for the others for ever: so they are let go of
# before, and the child begins with one.
_released, _stuck = True, False


def _before_fork():
    global _released
    _released = _core.variant.release_threads()


def _after_fork():
    global _stuck
    set_num_threads(1)
    _stuck = not _released


set_num_threads(_default_threads())

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
