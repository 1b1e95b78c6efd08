"""setup.py: built modules are kept, and used again while nothing that went into them has changed.

The compiler here is a fake that only records its calls."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

for needed in ("Cython", "setuptools"):
    pytest.importorskip(needed, reason=f"{needed} builds fastloop; pip fetches it for that alone")

ROOT = Path(__file__).resolve().parents[2]
COMPILER = """#!/bin/sh
# Writes its version, its arguments and the objects that it is to link to the file after -o.
case "$*" in *--version*) cat version; exit;; esac
echo "$*" >> calls
if test -e broken && grep -q "$(cat broken)" calls; then exit 1; fi
for word; do test "$last" = -o && out=$word; last=$word; done
{ cat version; echo "$*"; for word; do case $word in "$out") ;; *.o) cat "$word";; esac; done; } > "$out"
"""


@pytest.fixture
def build(tmp_path):
    """A function that builds in a folder of its own and returns (calls that compiled, what the modules then are)."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    for folder in ("csrc", "fastloop/_core"):
        (tmp_path / folder).mkdir(parents=True)
    for module in (ROOT / "csrc").glob("*.pyx"):
        (tmp_path / "csrc" / module.name).write_text('include "engine.pxi"\n')
    (tmp_path / "csrc/parts").mkdir()
    for name in ("csrc/engine.pxi", "csrc/parts/part.pxi", "fastloop/_core/core.pxd"):
        (tmp_path / name).write_text("# nothing\n")
    (tmp_path / "version").write_text("cc 1.0\n")
    (tmp_path / "cc").write_text(COMPILER)
    (tmp_path / "cc").chmod(0o755)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "fastloop"\nversion = "0"\n[tool.setuptools]\n'
                                             'packages = ["fastloop", "fastloop._core"]\n')

    def build(check=True, **variables):
        (tmp_path / "calls").write_text("")
        environment = {"PATH": os.environ["PATH"], "CC": str(tmp_path / "cc"), **variables}
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tmp_path, env=environment,
                       check=check, capture_output=True)
        compiled = [call for call in (tmp_path / "calls").read_text().splitlines() if "csrc" in call and " -c " in call]
        return len(compiled), {path.name: path.read_text() for path in (tmp_path / "fastloop/_core").glob("*.so")}

    return build


def test_a_second_build_compiles_nothing(build, tmp_path):
    calls, modules = build()
    assert calls == len(modules) >= 2
    for module in modules:
        (tmp_path / "fastloop/_core" / module).unlink()
    assert build() == (0, modules)


def test_what_goes_into_the_modules_makes_a_build_of_its_own(build, tmp_path):
    calls, modules = build()
    for variables in ({"FASTLOOP_DEBUG": "1"}, {"FASTLOOP_OPENMP": "0"}, {"CFLAGS": "-DX"}, {"LDFLAGS": "-lX"}):
        again, others = build(**variables)
        assert again == calls
        assert others != modules
        # The old ones come back, into the source folder too, though the others are newer there.
        assert build() == (0, modules)
    assert build(CPATH="/elsewhere")[0] == calls
    for name in ("version", "csrc/engine.pxi", "csrc/parts/part.pxi", "csrc/baseline.pyx", "csrc/new.h", "setup.py",
                 "fastloop/_core/core.pxd"):
        path = tmp_path / name
        before = path.read_bytes() if path.exists() else b""
        path.write_bytes(before + b"\n# changed\n")
        assert build()[0] == calls
        path.write_bytes(before) if before else path.unlink()
        assert build() == (0, modules)


def test_a_build_that_broke_off_is_not_used(build, tmp_path):
    (tmp_path / "broken").write_text("baseline.o")
    build(check=False)
    assert not list(tmp_path.glob("build/modules-*"))
    (tmp_path / "broken").unlink()
    calls, modules = build()
    assert calls == len(modules) >= 2


def test_a_compiler_that_does_not_say_what_it_is_compiles_every_time(build, tmp_path):
    (tmp_path / "version").unlink()
    assert build()[0] == build()[0] >= 2
    assert not list(tmp_path.glob("build/modules-*"))


def test_few_builds_are_kept(build, tmp_path):
    for i in range(6):
        build(CFLAGS=f"-DX={i}")
    assert len(list(tmp_path.glob("build/modules-*"))) == 4
    assert build(CFLAGS="-DX=5")[0] == 0
