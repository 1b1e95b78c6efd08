"""What fastloop says where an optional package is missing: one sentence that names the extra."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastloop import extras

SETUP = "import sys; sys.modules[{0!r}] = None; import fastloop as fl; h = fl.History(); h.append(1.0)\n"


def test_load_gives_the_module():
    assert extras.load("os.path", "plot", "this") is sys.modules["os.path"]


@pytest.mark.parametrize("package, extra, code", [
    ("matplotlib", "plot", "h.plot('x.png')"),
    ("matplotlib", "plot", "import fastloop.plot"),
    ("tensorboardX", "tensorboard", "fl.callbacks.TensorBoard('x')"),
])
def test_a_missing_package_is_named_with_its_extra(package, extra, code, tmp_path):
    code = SETUP.format(package) + f"try:\n    {code}\nexcept ImportError as error:\n    print(error)"
    command = [sys.executable, "-W", "error", "-c", code]
    path = {"PYTHONPATH": str(Path(extras.__file__).parents[1])}
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=path).stdout
    assert f"needs {package}: pip install 'fastloop[{extra}]'" in out
    assert out.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_extras_exist():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for extra, package in {"plot": "matplotlib", "tensorboard": "tensorboardX", "progress": "tqdm"}.items():
        assert project["optional-dependencies"][extra] == [package]
