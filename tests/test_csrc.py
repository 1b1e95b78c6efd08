"""The compiled sources: each file says near its top, in one line, which others it uses, and none uses a later one.

What a file uses is found by the names in its code that another one defines, so a local variable must not be called as
another file's function is.  What declarations.pxi declares counts as its own, wherever the code stands.
"""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
GROUPS = ["base", "data", "layers", "models", "step", "."]      # in order; ".": in none of them, and above them all
FILES = {path.name: path for path in sorted(CSRC.rglob("*.*"))}


def code(name):
    """A file's text without comments and strings; of an f-string what is in its braces stays."""
    text = re.sub(r'""".*?"""', "", FILES[name].read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r'f"[^"]*"', lambda string: " ".join(re.findall(r"\{([^{}]*)\}", string[0])), text)
    return re.sub(r' *#.*|"[^"]*"', "", text)


def defined(name):
    """The functions, classes, structs, variables and enum members of a file, and the names that it declares of C."""
    text, head = code(name), r"^(?:cdef|def) [^(=:\n]*?(\w+) *(?:[(=:]|$)|^(\w+) = "
    names = {name for match in re.findall(head, text, re.MULTILINE) for name in match}
    for block in re.findall(r"^cdef (?:enum|extern).*:\n((?: .*\n|\n)*)", text, re.MULTILINE):
        block = re.sub(r"=.*|\([^)]*\)[\w ]*", "", block)
        names.update(re.findall(r"(\w+) *(?:[:,]|$)", block, re.MULTILINE))
    return names - {"", "enum", "from", "nogil", "pass"}


def included(name, how="include"):
    lines = re.findall(f'^(?:{how}) "(.*)"', FILES[name].read_text(encoding="utf-8"), re.MULTILINE)
    return [Path(line).name for line in lines]


# The files that are compiled as one, in their order.
MODULES = [["declarations.pxi", *included(name), name] for name in ("core.pyx", "engine.pxi")]


def used(name):
    """The other files of its module whose names a file uses, in their order, and the headers that it includes."""
    words, seen, files = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", code(name))), set(), []
    for other in next((files for files in MODULES if name in files), []):
        if other != name and (defined(other) - seen) & words:
            files.append(other)
        seen |= defined(other)
    return files + included(name, "#include|cdef extern from")


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_which_others_it_uses(name):
    files = [file.removesuffix(".pxi") for file in used(name)] + ["what it includes"] * bool(included(name))
    line = f"Uses: {', '.join(files)}." if files else "Uses nothing."
    top = "\n".join(FILES[name].read_text(encoding="utf-8").splitlines()[:25])
    assert re.findall(r"^\W*(Uses\b.*\.)", top, re.MULTILINE) == [line]


@pytest.mark.parametrize("files", MODULES, ids=lambda files: files[-1])
def test_no_file_uses_a_later_one(files):
    assert not [(name, other) for i, name in enumerate(files) for other in used(name) if other in files[i:]]


@pytest.mark.parametrize("files", MODULES, ids=lambda files: files[-1])
def test_the_groups_of_files_come_in_their_order(files):
    order = [GROUPS.index(str(FILES[name].parent.relative_to(CSRC))) for name in files[1:]]
    assert order == sorted(order)


def test_every_file_is_compiled_and_in_the_map_of_contributing():
    assert set(FILES) == {*MODULES[0], *MODULES[1], *(name for name in FILES if name.endswith((".pyx", ".h")))}
    text = (CSRC.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = text[text.index("## Where things are") : text.index("### The way of a batch")]
    assert not [name for name in FILES if not re.search(rf"`{name.removesuffix('.pxi')}(\.pxi)?`", text)]
