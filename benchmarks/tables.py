"""Writes the tables of README.md from the files in results/, which the benchmarks wrote with --json.

    python benchmarks/bench_adam.py --dtype float32 --json benchmarks/results/adam-float32-1.json
    python benchmarks/tables.py

results/NAME.json fills the place between the lines `<!-- NAME -->` and `<!-- end -->`; without the file it is empty.
"""

import json
import re
from pathlib import Path

import harness

HERE = Path(__file__).parent
README, RESULTS = HERE / "README.md", HERE / "results"
PLACE = re.compile(r"(<!-- (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read():
    """The results, name -> what the file holds."""
    return {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def filled(text, results):
    """README's text with every place filled.  Raises ValueError for a result that has none."""
    homeless = sorted(results.keys() - {place[2] for place in PLACE.finditer(text)})
    if homeless:
        raise ValueError(f"no place for {', '.join(homeless)}: it needs the lines <!-- NAME --> and <!-- end -->")

    def fill(place):
        return place[1] + (section(results[place[2]]) if place[2] in results else "") + place[3]

    return PLACE.sub(fill, text)


def section(result):
    """What fills a place: how it was measured, and the tables."""
    header = result["header"]
    threads = f"{header['threads']} thread" + "s" * (header["threads"] > 1)
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    lines = [
        f"`{header['benchmark']}.py`, **{header['dtype']}, {threads}**, {header['date']}: {header['cpu']}, "
        f"{header['instruction set']}; {header['compiler']}, {versions}; {header['timing']}."
    ]
    for table in result["tables"]:
        lines += ["", f"{table['title']}:", "", *harness.markdown(table["rows"], table["base"], table["unit"])]
    return "\n".join(["", *lines, "", ""])


if __name__ == "__main__":
    README.write_text(filled(README.read_text(), read()))
