"""The Python files: private names are used in their own file only, and every file says what it holds."""

import ast
from pathlib import Path

import pytest

import fastloop as fl

# In spite of their underscores; the last is what scikit-learn asks its subclasses to extend.
PUBLIC = {"os._exit", *(f"neural_network.MLP{kind}._parameter_constraints" for kind in ("Classifier", "Regressor"))}
FILES = sorted(Path(fl.__file__).parent.glob("*.py"))


def private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_reaches_through_the_underscore_of_another(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    own = {n.attr for n in nodes if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") in ("self", "cls")}
    own |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    foreign = {
        f"line {n.lineno}: {ast.unparse(n)}" for n in nodes
        if isinstance(n, ast.Attribute) and private(n.attr) and n.attr not in own and ast.unparse(n) not in PUBLIC
    }
    assert not foreign


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_begins_with_what_lives_there(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_map_of_contributing_names_every_file(path):
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    start = text.index("## Where things are")
    assert f"{path.name}`" in text[start : text.index("### The way of a batch", start)]
