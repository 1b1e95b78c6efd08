"""Writes the tables of benchmarks/README.md and of the project's README.md from the files in results/, which the
benchmarks wrote with --json.

    python benchmarks/bench_adam.py --dtype float32 --json benchmarks/results/adam-float32-1.json
    python benchmarks/tables.py

results/NAME.json fills the place between the lines `<!-- NAME -->` and `<!-- end -->`; without the file it is empty.
`<!-- NAME: a, b -->` takes the columns a and b of its first table alone.
"""

import json
import re
from pathlib import Path

import harness

HERE = Path(__file__).parent
READMES, RESULTS = (HERE / "README.md", HERE.parent / "README.md"), HERE / "results"
PLACE = re.compile(r"(<!-- ([\w-]+)(?:: (.*?))? -->\n).*?(<!-- end -->)", re.DOTALL)


def read():
    """The results, name -> what the file holds."""
    return {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def filled(text, results):
    """A README's text with every place filled."""

    def fill(place):
        name, columns = place[2], place[3] and place[3].split(", ")
        return place[1] + (section(results[name], columns) if name in results else "") + place[4]

    return PLACE.sub(fill, text)


def homeless(texts, results):
    """The names of results that have no place in any of the texts."""
    return sorted(results.keys() - {place[2] for text in texts for place in PLACE.finditer(text)})


def section(result, columns=None):
    """What fills a place: how it was measured, and the tables, or of the first these columns."""
    header = result["header"]
    threads = f"{header['threads']} thread" + "s" * (header["threads"] > 1)
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    lines = [
        f"`{header['benchmark']}.py`, **{header['dtype']}, {threads}**, {header['date']}: {header['cpu']}, "
        f"{header['instruction set']}; {header['compiler']}, {versions}; {header['timing']}."
    ]
    for table in result["tables"][: 1 if columns else None]:
        lines += ["", f"{table['title']}:", "", *harness.markdown(table["rows"], table["base"], table["unit"], columns)]
    return "\n".join(["", *lines, "", ""])


if __name__ == "__main__":
    results = read()
    if left := homeless([readme.read_text() for readme in READMES], results):
        raise SystemExit(f"no place for {', '.join(left)}: it needs the lines <!-- NAME --> and <!-- end -->")
    for readme in READMES:
        readme.write_text(filled(readme.read_text(), results))
