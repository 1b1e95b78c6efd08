"""Checkpoints under kill and error at every system call of writing one: wholly the old file or wholly the new one.

strace injects the fault.  Its counts go by system call and by path, so every path is absolute, the temporary file's
name is fixed, and the trace must say that the fault was injected: otherwise nothing happens and nothing is tested.
"""

import re
import shutil
import signal
import subprocess
import sys

import cases
import numpy as np
import pytest

import fastloop as fl
from fastloop import checkpoint

WRITE = """
import os, sys
import numpy as np
from fastloop import checkpoint
os.urandom = lambda n: b"1"     # part of the temporary file's name
try:
    checkpoint.write(sys.argv[1], {"a": np.ones(3)}, {"file": "new"})
except OSError as error:
    sys.exit(f"refused: {error}")
"""
ERRORS = ["ENOSPC", "EIO", "EROFS", "EACCES"]


def traced(folder, *options):
    """Write a checkpoint in `folder` under strace with these options; (exit status, its message, the trace)."""
    paths = [folder, folder / "run.npz", folder / "run.npz.31.tmp"]
    log = folder.parent / "trace.txt"
    command = ["strace", "-f", "-o", log, *[word for path in paths for word in ("-P", path)], *options]
    done = subprocess.run(
        [*map(str, command), sys.executable, "-c", WRITE, str(paths[1])],
        capture_output=True, text=True, timeout=60,
    )
    return done.returncode, done.stderr, log.read_text()


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Every system call that a write makes on its files, in order: "openat", ..., "rename", "openat 2", ..."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: no faults at system calls")
    folder = tmp_path_factory.mktemp("calls") / "run"
    folder.mkdir()
    checkpoint.write(folder / "run.npz", {}, {})        # an old file's mode and owner are read and given to the new one
    status, message, trace = traced(folder)
    if not trace:
        pytest.skip(f"strace may not trace here: {message.strip()[:100]}")
    assert status == 0, message
    names = re.findall(r"^\d+ +(\w+)\(", trace, re.M)
    calls = [f"{name} {names[: i + 1].count(name)}" for i, name in enumerate(names)]
    essential = ["openat 1", "write 1", "fsync 1", "close 1", "rename 1", "openat 2", "fsync 2"]
    assert [call for call in calls if call in essential] == essential
    return calls


def found(folder):
    """Which file is there, checked to be whole."""
    arrays, meta = checkpoint.read(folder / "run.npz")
    assert arrays["a"].tolist() == ([0.0] * 3 if meta["file"] == "old" else [1.0] * 3)
    return meta["file"]


def each(calls, tmp_path, what):
    """With the fault at each call in turn: (call, whether the old file must be there, its folder, what traced said)."""
    for i, call in enumerate(calls):
        folder = tmp_path / f"{i}" / "run"
        folder.mkdir(parents=True)
        checkpoint.write(folder / "run.npz", {"a": np.zeros(3)}, {"file": "old"})
        name, number = call.split()
        result = traced(folder, "-e", f"inject={name}:{what}:when={number}")
        yield call, i <= calls.index("rename 1"), folder, *result


def test_killed_at_every_system_call(calls, tmp_path):
    for call, old, folder, status, _, trace in each(calls, tmp_path, "signal=SIGKILL"):
        assert "killed by SIGKILL" in trace, call
        assert status != 0, call
        assert found(folder) == ("old" if old else "new"), call
        # What a killed process leaves does not disturb later saves.
        checkpoint.write(folder / "run.npz", {"a": np.ones(3)}, {"file": "new"})
        assert found(folder) == "new"


def test_ctrl_c_at_every_system_call(calls, tmp_path):
    for call, _, folder, status, message, trace in each(calls, tmp_path, "signal=SIGINT"):
        assert "--- SIGINT" in trace, call
        assert status != 0, call
        assert "KeyboardInterrupt" in message, call
        found(folder)
        assert [path.name for path in folder.iterdir()] == ["run.npz"], call


@pytest.mark.parametrize("error", ERRORS if cases.NIGHTLY else ERRORS[:1])
def test_an_error_at_every_system_call(error, calls, tmp_path):
    for call, old, folder, status, message, trace in each(calls, tmp_path, f"error={error}"):
        assert f"{error} " in trace, call
        assert "(INJECTED)" in trace, call
        if status == 0:     # what Python can do without: a look at the file's block size, whether it is a terminal
            assert call not in ("openat 1", "write 1", "fsync 1", "close 1", "rename 1", "openat 2", "fsync 2")
        else:
            assert re.match(r"refused: \[Errno \d+\] ", message), (call, message)
        assert found(folder) == ("new" if status == 0 or not old else "old"), call
        assert [path.name for path in folder.iterdir()] == ["run.npz"], call


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_goes_on_to_the_same_bits(name, tmp_path):
    """SIGTERM ends the command at once; what its last --save-every wrote is whole."""
    flags = ["--steps", 3_000, "--quiet", "--sample", 0, "--shuffle"]
    whole = cases.python("-m", "fastloop.train", *flags, "--save", tmp_path / "whole.npz")
    assert whole.returncode == 0, whole.stderr
    path = tmp_path / "run.npz"
    process = subprocess.Popen(
        [sys.executable, "-m", "fastloop.train", *map(str, flags), "--save", path, "--save-every", "100"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    cases.wait_for(path.exists)
    process.send_signal(name)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == -name
    assert fl.Trainer.load(path).steps < 3_000
    resumed = cases.python("-m", "fastloop.train", "--resume", path)
    assert resumed.returncode == 0, resumed.stderr
    one, other = (fl.Trainer.load(tmp_path / name).model.params.flat for name in ("whole.npz", "run.npz"))
    assert one.tobytes() == other.tobytes()
