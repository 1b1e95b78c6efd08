"""What py.typed promises: every public function is annotated, and strict type checkers accept a user's program."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastloop as fl

PACKAGE = Path(fl.__file__).parent
PROGRAMS = Path(__file__).parent / "types"


def functions(body, inside=""):
    """(name, node) of the functions and methods of a module that can be reached from outside."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node.body, f"{inside}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name.endswith("__")):
            yield f"{inside}{node.name}", node


@pytest.mark.parametrize("module", sorted(path.stem for path in PACKAGE.glob("*.py")))
def test_every_public_function_says_what_it_takes_and_gives(module):
    untyped = []
    for name, node in functions(ast.parse((PACKAGE / f"{module}.py").read_text("utf-8")).body):
        own, a = "." in name and "staticmethod" not in map(ast.unparse, node.decorator_list), node.args
        arguments = [*a.posonlyargs, *a.args][own:] + a.kwonlyargs + [x for x in (a.vararg, a.kwarg) if x]
        untyped += [f"{name}({argument.arg})" for argument in arguments if argument.annotation is None]
        untyped += [f"{name} ->"] * (node.returns is None)
    assert untyped == []


def run(tmp_path, *arguments):
    """A checker's module as a command, which is to find this fastloop; skips where the checker is not installed."""
    pytest.importorskip(arguments[0].partition(".")[0], reason="a checker of types, which the extra `lint` brings")
    source = {} if "site-packages" in PACKAGE.parts else {"MYPYPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=tmp_path, env={**os.environ, **source}, capture_output=True, text=True)


def mistakes(tmp_path, path):
    """What mypy --strict says of a user's program, as {line: message}."""
    strict = "--strict", "--follow-imports", "silent", "--config-file", "", "--cache-dir", tmp_path
    done = run(tmp_path, "mypy", *strict, path)
    assert not done.stderr
    lines = [line.split(":", 2) for line in done.stdout.splitlines() if ": error: " in line]
    return {int(number): message for _, number, message in lines}


def test_a_users_program_passes_a_strict_checker(tmp_path):
    assert mistakes(tmp_path, PROGRAMS / "uses.py") == {}


def test_a_strict_checker_finds_a_users_mistakes_and_nothing_else(tmp_path):
    path = PROGRAMS / "mistakes.py"
    expected = {number for number, line in enumerate(path.read_text().splitlines(), 1) if line.endswith("# mistake")}
    found = mistakes(tmp_path, path)
    assert set(found) == expected, found


def test_the_stubs_are_those_of_the_compiled_modules(tmp_path):
    modules = [f"fastloop._core.{path.stem}" for path in (PACKAGE / "_core").glob("*.pyi")]
    assert modules
    made = "--ignore-disjoint-bases", "--allowlist", PROGRAMS / "made_by_cython.txt"
    done = run(tmp_path, "mypy.stubtest", *modules, *made, "--concise")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_checker_knows_the_type_of_every_public_name(tmp_path):
    """Of the modules that fastloop's names are from; what is behind them, such as fit.py, is no part of the API."""
    names = [getattr(fl, name) for name in fl.__all__]
    modules = {getattr(named, "__module__", None) or named.__name__ for named in names} | {"fastloop.reference"}
    done = run(tmp_path, "basedpyright", "--verifytypes", "fastloop", "--ignoreexternal", "--outputjson")
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    known = {
        symbol["name"]: symbol["isTypeKnown"] for symbol in symbols
        if symbol["isExported"] and any(symbol["name"].startswith(f"{module}.") for module in modules)
    }
    assert len(known) > 400
    assert [name for name in known if not known[name]] == []
