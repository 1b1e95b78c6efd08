"""What this installation is.  Nothing is chosen here: the instruction set is in _core, the threads in threads.py."""

import sys
from typing import TextIO

import numpy as np

from . import _core
from ._check import DTYPES
from .threads import get_num_threads


def show_config(file: TextIO | None = None) -> None:
    """Print the version, the chosen instruction set, compiler, threads and NumPy; what a bug report needs."""
    from . import __version__

    rows = {
        "fastloop": __version__,
        "instruction set": f"{_core.isa} (this CPU: {', '.join(_core.supported)})",
        "compiler": _core.compiler,
        "precisions": ", ".join(map(str, DTYPES)),
        "threads": f"{get_num_threads()}{'' if _core.variant.openmp else ' (built without OpenMP)'}",
        "numpy": np.__version__,
        "python": f"{sys.version.split()[0]} on {sys.platform}",
    }
    for name, value in rows.items():
        print(f"{name:16} {value}", file=file)
