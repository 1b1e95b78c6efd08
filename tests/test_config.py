"""Threads, and what show_config tells."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastloop as fl
from fastloop import _core, threads


@pytest.mark.parametrize("n, error", [(0, ValueError), (-1, ValueError), (1025, ValueError), (2.0, TypeError),
                                      (True, TypeError), ("2", TypeError), (None, TypeError)])
def test_bad_numbers_of_threads_are_refused_and_change_nothing(n, error):
    before = fl.get_num_threads()
    with pytest.raises(error, match=repr(n) if error is TypeError else str(n)):
        fl.set_num_threads(n)
    assert fl.get_num_threads() == before


@pytest.mark.parametrize("own, openmp, expected", [
    ("3", "5", 3), ("", "5", 5), ("0", "5", 5), ("1025", "5", 5), ("two", "5", 5), ("-1", "", None), ("", "", None),
    ("1", "", 1), ("1024", "", 1024),
])
def test_threads_come_from_the_environment_else_from_the_cpus(own, openmp, expected, monkeypatch):
    monkeypatch.setenv("FASTLOOP_NUM_THREADS", own)
    monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    assert threads.default_threads() == (expected or len(os.sched_getaffinity(0)))


def test_threads_where_a_system_does_not_say_which_cpus(monkeypatch):
    for name in ("FASTLOOP_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert threads.default_threads() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.default_threads() == 1


def test_show_config_names_what_a_bug_report_needs(capsys):
    out = io.StringIO()
    fl.show_config(out)
    rows = dict(line.split(maxsplit=1) for line in out.getvalue().splitlines() if not line.startswith("instruction"))
    assert rows["fastloop"] == fl.__version__
    assert rows["threads"].split()[0] == str(fl.get_num_threads())
    assert rows["compiler"] == _core.compiler
    assert f"instruction set  {_core.isa} (this CPU: " in out.getvalue()
    fl.show_config()
    assert capsys.readouterr().out == out.getvalue()


def test_a_build_without_openmp_says_one_thread(monkeypatch, capsys):
    before = fl.get_num_threads()
    monkeypatch.setattr(_core.variant, "openmp", False)
    try:
        fl.set_num_threads(4)
        assert fl.get_num_threads() == 1
        with pytest.raises(ValueError, match="n = 0 must be an int of at least 1"):
            fl.set_num_threads(0)
        fl.show_config()
    finally:
        monkeypatch.undo()
        fl.set_num_threads(before)
    assert "threads          1 (built without OpenMP)\n" in capsys.readouterr().out


LIMITED = """
import os, resource
import numpy as np
import fastloop as fl
from fastloop import _core, threads

_core.variant.set_work_per_thread(1)
threads.Pace.choose = lambda self, count: (fl.get_num_threads(), count)     # as the fixture many_threads
docs = fl.load_docs()[:500]
tok = fl.CharTokenizer(docs)


def losses(threads):
    fl.set_num_threads(threads)
    trainer = fl.Trainer(fl.BigramLM(tok.vocab_size, n_embd=16), fl.Adam(), tokenizer=tok)
    return trainer.fit(docs, steps=20, batch_size=16).loss.tolist()


expected = losses(1)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + ROOM,) * 2)
before = len(os.listdir("/proc/self/task"))
assert losses(8) == expected
made = len(os.listdir("/proc/self/task")) - before
assert fl.get_num_threads() == 8
print(made)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the platform does not tell a process's size")
@pytest.mark.skipif(not _core.variant.openmp, reason="built without OpenMP: there is one thread")
@pytest.mark.parametrize("room, least, most", [(4 << 20, 0, 0), (28 << 20, 1, 3), (1 << 30, 7, 7)])
def test_where_not_all_threads_can_be_made_fit_goes_on_with_fewer(room, least, most):
    """libgomp would end the process; a thread's stack takes 8 MiB of the address space that ulimit -v leaves."""
    run = subprocess.run(
        ["bash", "-c", "ulimit -s 8192; exec \"$0\" \"$@\"", sys.executable, "-c", LIMITED.replace("ROOM", str(room))],
        capture_output=True, text=True, timeout=100, cwd=Path(__file__).parent.parent,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert least <= int(run.stdout) <= most


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # Python warns of fork in a process with threads: the point
def test_more_than_one_thread_is_refused_in_a_child_whose_parents_threads_were_not_released(monkeypatch):
    monkeypatch.setattr(_core.variant, "release_threads", lambda: False)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            fl.set_num_threads(1)
            fl.set_num_threads(2)
        except RuntimeError as error:
            status = 0 if "would wait for its parent's for ever" in str(error) and fl.get_num_threads() == 1 else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
