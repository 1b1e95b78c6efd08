"""Every example runs, and says what it is there to show."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHOWN = {
    "five_moves": "refused: step() was called after step()",
    "linear_regression": "fastloop with lr 1.0: step ",
    "drop_in_adam": "step 500",
    "accumulation": "bit for bit: True",
    "early_stopping": "stopped by patience",
    "resume": "bit for bit: True",
    "diagnosis": "healthy:\n  nothing found\n",
    "text": "856 characters, 45 of them different",
    "symmetry": "equal start: 1 different hidden units",
}


def test_no_example_is_left_out():
    assert sorted(SHOWN) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SHOWN)
def test_example(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert SHOWN[name] in done.stdout
    if name == "text":
        assert int(re.search(r"recites (\d+) of 300", done.stdout)[1]) > 100
