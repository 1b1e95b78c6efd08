"""Fixtures that several test files share."""

import importlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import fastloop as fl
from fastloop import _core

# A job in the background of a script, as CI may be, inherits that Ctrl-C is ignored, and so would what it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Every Python that a test starts, wherever, has the fastloop of this one, though it may be found in this folder alone.
paths = [str(Path(fl.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(paths)


@pytest.fixture(params=_core.supported)
def variant(request, monkeypatch):
    """Each compiled variant that this CPU can run; fastloop uses it for the length of the test."""
    for character, ending in (("f", "_float32"), ("d", "")):
        module = importlib.import_module(f"fastloop._core.{request.param}{ending}")
        monkeypatch.setitem(_core.engines, character, module)
    return module       # of float64


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    """Each precision."""
    return np.dtype(request.param)


@pytest.fixture
def engine(variant, dtype):
    """Each compiled module that this CPU can run: of every instruction set, for every precision."""
    return _core.engine(dtype)


@pytest.fixture
def many_threads(monkeypatch):
    """Even the smallest work uses as many threads as the test then sets; otherwise only large work does."""
    monkeypatch.setattr("fastloop.threads.Pace.choose", lambda self, count: (fl.get_num_threads(), count))
    threads, work = fl.get_num_threads(), _core.variant.set_work_per_thread(1)
    yield
    fl.set_num_threads(threads)
    _core.variant.set_work_per_thread(work)


@pytest.fixture
def as_with_openmp(monkeypatch):
    """The number of threads can be set in a build without OpenMP too; compiled code then ignores it."""
    monkeypatch.setattr(_core.variant, "openmp", True)
