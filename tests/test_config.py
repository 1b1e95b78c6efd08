"""Threads, and what show_config tells."""

import io
import os

import pytest

import fastloop as fl
from fastloop import _core, config


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
    assert config._default_threads() == (expected or len(os.sched_getaffinity(0)))


def test_threads_where_a_system_does_not_say_which_cpus(monkeypatch):
    for name in ("FASTLOOP_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert config._default_threads() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert config._default_threads() == 1


def test_show_config_names_what_a_bug_report_needs(capsys):
    out = io.StringIO()
    fl.show_config(out)
    rows = dict(line.split(maxsplit=1) for line in out.getvalue().splitlines() if not line.startswith("instruction"))
    assert rows["fastloop"] == fl.__version__
    assert rows["threads"] == str(fl.get_num_threads())
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
        with pytest.raises(ValueError, match="from 1 to 1024, got 0"):
            fl.set_num_threads(0)
        fl.show_config()
    finally:
        monkeypatch.undo()
        fl.set_num_threads(before)
    assert "threads          1 (built without OpenMP)\n" in capsys.readouterr().out
