"""What is said of the benchmarks: the tables of the READMEs are those of the results.  None is run here."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RESULT = {
    "header": {
        "benchmark": "bench_x", "date": "2026-01-31", "cpu": "a CPU, 2 cores", "threads": 2, "dtype": "float32",
        "instruction set": "avx2", "compiler": "gcc 12", "versions": {"numpy": "2.0", "torch": "missing"},
        "timing": "median of 7",
    },
    "tables": [{
        "title": "Steps", "base": "fastloop", "unit": "ms",
        "rows": [{"n": 10_000, "seconds": {"fastloop": 0.00123456, "NumPy": 0.0123456}}, {"n": 2, "rate": 0.5}],
    }],
}


@pytest.fixture
def tables(monkeypatch):
    """benchmarks/tables.py"""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("tables", "harness"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import tables

    return tables


def test_readme_holds_the_tables_of_the_results(tables):
    results, texts = tables.read(), [readme.read_text() for readme in tables.READMES]
    assert not tables.homeless(texts, results)
    for text in texts:
        assert tables.filled(text, results) == text, "run python benchmarks/tables.py"


def test_results_are_of_full_runs(tables):
    timings = {name: result["header"]["timing"] for name, result in tables.read().items()}
    assert [name for name, timing in timings.items() if not timing.startswith("median of 7 ")] == []


def test_a_result_fills_its_place_and_no_other(tables):
    text = "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\nold\n<!-- end -->\nc\n"
    new = tables.filled(text, {"x": RESULT})
    assert new == """a
<!-- x -->

`bench_x.py`, **float32, 2 threads**, 2026-01-31: a CPU, 2 cores, avx2; gcc 12, numpy 2.0, torch missing; median of 7.

Steps:

|      n | fastloop ms |    NumPy ms | rate |
| -----: | ----------: | ----------: | ---: |
| 10,000 |        1.23 | 12.3 (10.0) |    - |
|      2 |           - |           - | 0.50 |

<!-- end -->
b
<!-- y -->
<!-- end -->
c
"""
    assert tables.filled(new, {"x": RESULT}) == new


def test_a_place_may_ask_for_some_columns(tables):
    new = tables.filled("<!-- x-1: n, NumPy ms -->\n<!-- end -->\n", {"x-1": RESULT})
    assert "| 10,000 | 12.3 (10.0) |\n" in new
    assert "rate" not in new
    assert tables.filled(new, {"x-1": RESULT}) == new
    with pytest.raises(ValueError, match="no columns NumPy us; there are n, fastloop ms, NumPy ms, rate"):
        tables.filled("<!-- x-1: n, NumPy us -->\n<!-- end -->\n", {"x-1": RESULT})


def test_a_result_without_a_place_is_found(tables):
    texts = ["<!-- y -->\n<!-- end -->\n", "<!-- w: n -->\n<!-- end -->\n"]
    assert tables.homeless(texts, {"z": RESULT, "y": RESULT, "x": RESULT, "w": RESULT}) == ["x", "z"]


def test_no_benchmark_is_left_out_of_the_readme():
    named = [line.split("`")[1] for line in (BENCHMARKS / "README.md").read_text().splitlines()
             if line.startswith("| `bench_")]
    assert sorted(named) == sorted(path.name for path in BENCHMARKS.glob("bench_*.py"))
