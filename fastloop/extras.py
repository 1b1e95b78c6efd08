"""Optional packages, imported when they are needed and missed in one sentence.  Nothing else lives here."""

from __future__ import annotations

import importlib
from typing import Any


def load(module: str, extra: str, what: str) -> Any:
    """The module; where it does not import, an ImportError that says which extra of fastloop brings it.

    what: what cannot be done without it, the subject of the sentence.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{what} needs {package}: pip install 'fastloop[{extra}]' ({error})") from error
