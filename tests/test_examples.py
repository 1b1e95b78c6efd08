"""Every example runs, and says what it is there to show."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
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
    "own_model": "autoencoder: loss 0.811 -> 0.2",
    "jax_function": "apart by at most",
}
NEEDS = {"jax_function": "jax"}


def has(module):
    return importlib.util.find_spec(module) is not None


def test_no_example_is_left_out():
    assert sorted(SHOWN) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SHOWN)
def test_example(name, tmp_path):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert SHOWN[name] in done.stdout
    if name == "text":
        assert int(re.search(r"recites (\d+) of 300", done.stdout)[1]) > 100


def test_the_code_in_the_readme_runs(tmp_path, monkeypatch):
    """Its Python blocks, in one session as they stand there."""
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    session, saves = {}, has("safetensors")
    for block in blocks:
        if any(f"import {name}" in block and not has(name) for name in ("torch", "jax")):
            continue
        if "fastloop.sklearn" in block and not has("sklearn"):
            continue
        if "from safetensors" in block:
            if not saves:
                continue
            exec(block, session)
            ids = [session["tok"].bos, *session["tok"].encode("annabel")]
            got = session["forward"](session["torch"].tensor(ids)).numpy()
            np.testing.assert_allclose(got, session["model"].logits(ids), rtol=0, atol=1e-12)
            continue
        if not saves:
            block = "\n".join(line for line in block.splitlines() if "safetensors" not in line)
        exec(block, session)
    assert session["history"].loss.shape == (1000,)
    assert session["w"] == pytest.approx(1.0 - 1e-3)
    assert session["line"].predict([10.0]) == pytest.approx(19.996, abs=5e-4)
    assert session["trainer"].model.params["w"] == pytest.approx(3.0, abs=1e-3)
    if has("sklearn"):
        assert session["clf"].best_validation_score_ > 0.8
    if has("jax"):
        assert session["model"].params["b"] == pytest.approx(1.0, abs=1e-3)
