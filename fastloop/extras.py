"""Optional packages: imported when needed; a missing one is reported in one sentence, and errors name the file."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._types import Path


def load(module: str, extra: str, what: str) -> Any:
    """The module; where it does not import, an ImportError that says which extra of fastloop brings it.

    what: what cannot be done without it, the subject of the sentence.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{what} needs {package}: pip install 'fastloop[{extra}]' ({error})") from error


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file, as safe_open reads it into NumPy arrays; a damaged one is a ValueError with its name."""
    package = load("safetensors", "safetensors", "a safetensors file")
    open(path, "rb").close()        # its errors, such as that for a folder, name the file
    try:
        with package.safe_open(path, "numpy") as file:
            yield file
    except package.SafetensorError as error:
        raise ValueError(f"{path}: is not a complete safetensors file ({error})") from error
