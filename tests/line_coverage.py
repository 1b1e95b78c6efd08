"""Line coverage of the kernels (csrc/) and of the Python modules by the tests.

    python tests/line_coverage.py [--isa NAME] [pytest arguments]

Works on a temporary copy of the tree.  The core and one instruction set are built without optimisation and counted by
gcov; a line of Cython counts as run where any C line made from it ran.  (Cython's own tracing takes the GIL at every
line of a nogil loop, and its plugin for coverage ended with a TypeError on these modules.)  Prints the share of lines
run and the lines not run.  Needs gcc with gcov, Cython and coverage.

Takes about seven minutes on one core.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from plant_faults import LEFT_OUT, ROOT, build, command, modules_of, only, usual_variant

MARKER = re.compile(r'\s*/\* "(csrc/[\w/]+\.(?:pxi|pyx))":(\d+)$')


def source_lines(c):
    """Where each line of a C file that Cython wrote comes from: {line: (file, line)}."""
    origin, place = {}, None
    for number, text in enumerate(c.read_text().splitlines(), 1):
        marker = MARKER.match(text)
        if marker:
            place = marker[1], int(marker[2])
        elif text.strip() == "/* function exit code */" or text.startswith("/* Module declarations"):
            place = None
        elif place:
            origin[number] = place
    return origin


def kernel_counts(tree, variant):
    """{file: {line: times run}} of what core and the variant were built from."""
    counts = defaultdict(lambda: defaultdict(int))
    for module in modules_of(variant):
        (notes,) = tree.rglob(f"*{module}.gcno")
        status, out = command(tree, "gcov", "--json-format", "--stdout", notes.with_suffix(".gcda"))
        if status != 0:
            raise RuntimeError(out)
        origin = source_lines(tree / f"{module}.c")
        for file in json.loads(out[out.index("{"):])["files"]:
            for line in file["lines"]:
                number = line["line_number"]
                place = origin.get(number) if file["file"] == f"{module}.c" else (file["file"], number)
                if place and (tree / place[0]).exists():
                    counts[place[0]][place[1]] += line["count"]
    return counts


def python_counts(tree):
    """The same of fastloop/*.py, each line counted once."""
    python = [sys.executable, "-m", "coverage"]
    command(tree, *python, "combine")
    status, out = command(tree, *python, "json", "-o", "coverage.json")
    if status != 0:
        raise RuntimeError(out)
    files = json.loads((tree / "coverage.json").read_text())["files"]
    return {name: {**dict.fromkeys(file["executed_lines"], 1), **dict.fromkeys(file["missing_lines"], 0)}
            for name, file in files.items()}


def ranges(numbers):
    """[1, 2, 3, 7] as "1-3 7"."""
    runs = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def report(title, counts):
    print(f"\n{title}")
    total = run = 0
    for file, lines in sorted(counts.items()):
        missed = sorted(n for n, times in lines.items() if not times)
        total += len(lines)
        run += len(lines) - len(missed)
        print(f"{file:30} {len(lines) - len(missed):5} of {len(lines):5}  {1 - len(missed) / max(len(lines), 1):7.1%}"
              f"  {ranges(missed)}".rstrip())
    print(f"{'together':30} {run:5} of {total:5}  {run / max(total, 1):7.1%}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default=usual_variant(), help="the variant to count (default %(default)s)")
    args, pytest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work, "tree")
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        os.environ["COVERAGE_FILE"] = str(tree / ".coverage")       # for tests' own processes, in other folders
        only(tree, args.isa)
        build(tree, modules_of(args.isa), options=["-O0", "--coverage", "-fprofile-update=atomic"])
        # At -O0 the examples take minutes.
        left_out = "--ignore=tests/test_examples.py"
        run = [sys.executable, "-m", "coverage", "run", "-m", "pytest", "-p", "no:cacheprovider", left_out, *pytest]
        status, out = command(tree, *run)
        print("".join(out.splitlines(True)[-15:]))
        report(f"kernels ({args.isa})", kernel_counts(tree, args.isa))
        report("Python modules", python_counts(tree))
    return status


if __name__ == "__main__":
    sys.exit(main())
