"""Threads, and what this installation is."""

import os
import sys

import numpy as np

from . import _core

MAX_THREADS = 1024


def get_num_threads():
    """The most threads that a step may use: 1 in a build without OpenMP."""
    return _num_threads


def set_num_threads(n):
    """Use at most n threads; how many a step really uses depends on its work, its bits on neither.

    A build without OpenMP takes any n, and stays at one.
    """
    global _num_threads
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"the number of threads must be an int, got {n!r}")
    if not 1 <= n <= MAX_THREADS:
        raise ValueError(f"the number of threads must be from 1 to {MAX_THREADS}, got {n}")
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


set_num_threads(_default_threads())

# A forked child has only the thread that forked, and libgomp would wait for the others for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: set_num_threads(1))
