"""Threads and forks, for every model: the same bits at any number of threads, alone or not, and no child that hangs.

test_trainer.py, test_gpt.py, test_mlp.py and test_optim.py have the same for the passes alone.
"""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import cases
import pytest

import fastloop as fl

TASKS = "/proc/self/task"


def fitted(model, optimizer="adam", **options):
    """The state after a small run in which every pass has work for several threads."""
    trainer = cases.make(model, optimizer, **options)
    trainer.fit(*cases.data(model)[0], steps=6, batch_size=24)
    return cases.state(trainer)


@pytest.mark.skipif(not os.path.isdir(TASKS), reason="the platform does not list a process's threads")
def test_the_tests_of_threads_use_threads(many_threads):
    if not fl._core.variant.openmp:
        pytest.skip("built without OpenMP: there is one thread")
    fl.set_num_threads(8)
    for model in cases.MODELS:
        fitted(model)
    assert len(os.listdir(TASKS)) >= 8


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("model", cases.MODELS)
def test_the_same_bits_at_any_number_of_threads_many_times(model, optimizer, many_threads):
    fl.set_num_threads(1)
    expected = fitted(model, optimizer, clip_norm=0.1, grad_accum=2)
    for _ in range(100 if cases.NIGHTLY else 5):
        for threads in (2, 3, 4, 8):
            fl.set_num_threads(threads)
            assert fitted(model, optimizer, clip_norm=0.1, grad_accum=2) == expected, threads


def test_trainers_in_several_python_threads_give_the_same_bits_as_one_after_the_other(many_threads):
    """The GIL is released in compiled code, so these really run side by side, each with OpenMP threads of its own."""
    fl.set_num_threads(3)
    models = [model for model in cases.MODELS for _ in range(4)]
    expected = [fitted(model) for model in models]
    for _ in range(20 if cases.NIGHTLY else 3):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(fitted, models)) == expected


def forked(check, timeout=30):
    """Whether a forked child in which `check()` is called comes to its end, and it is true."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(timeout)       # a child that hangs is killed
        status = 1
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
ignored = pytest.mark.filterwarnings("ignore::DeprecationWarning")     # Python warns of fork beside threads: the point


@needs_fork
@ignored
def test_a_hundred_children_forked_after_a_parallel_step(many_threads):
    fl.set_num_threads(4)
    expected = {model: fitted(model) for model in cases.MODELS}
    models = list(cases.MODELS)
    for i in range(100):
        model = models[i % len(models)]
        fitted(model)
        assert forked(lambda model=model: fl.get_num_threads() == 1 and fitted(model) == expected[model])


@needs_fork
@ignored
def test_children_forked_while_another_thread_trains(many_threads):
    fl.set_num_threads(2)
    expected = fitted("gpt")
    ended = threading.Event()

    def train():
        while not ended.is_set():
            fitted("gpt")

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(20):
            assert forked(lambda: fitted("gpt") == expected)
    finally:
        ended.set()
        thread.join()
