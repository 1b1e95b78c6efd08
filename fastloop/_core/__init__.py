"""Chooses the compiled variant for the running CPU when it is first imported; each precision has a module.

FASTLOOP_ISA=baseline, avx2 or avx512 forces one.  Little else lives here: the kernels are in csrc/.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from .._command import running


def refuse(message: str) -> NoReturn:
    """Raise ImportError; at the start of one of the package's own commands, which cannot catch it, exit with a line."""
    if running():
        print(f"fastloop: error: {message}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(message) from None


def load(name: str) -> Any:
    """The compiled module of that name, or an ImportError that says what to do."""
    try:
        return importlib.import_module(f".{name}", __name__)
    except ImportError as error:
        problem = error
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    python = f"Python {'.'.join(map(str, sys.version_info[:3]))}"
    if isinstance(problem, ModuleNotFoundError) and os.path.exists(os.path.join(folder, "setup.py")):
        what = (
            f"fastloop was imported from {folder}, its source folder, which holds no compiled modules for {python}: "
            "run `pip install .` there, or start Python in another folder to use an installed fastloop"
        )
    elif isinstance(problem, ModuleNotFoundError):
        what = f"{folder} holds no compiled modules of fastloop for {python}: install fastloop again with it"
    elif library := re.search(r"lib(g|i|)omp\b[\w.]*", str(problem)):
        what = (
            f"fastloop runs its threads through {library[0]}, which does not load: install it (Debian: libgomp1, "
            "Fedora: libgomp, macOS: brew install libomp), or build without threads by FASTLOOP_OPENMP=0 pip install . "
            f"in the source folder ({problem})"
        )
    else:
        what = f"fastloop's compiled modules do not load ({problem}): install fastloop again with {python}"
    refuse(what)


cpu: Any = load("cpu")
supported: list[str] = cpu.supported()      # instruction sets that this CPU can run, best first
compiler: str = cpu.compiler                # name and version
isa: str = os.environ.get("FASTLOOP_ISA") or supported[0]
if isa not in supported:
    refuse(f"FASTLOOP_ISA = {isa!r} is not one of {', '.join(supported)}, which this CPU can run")

# A thread that waits for another spins first, by default for milliseconds: on a busy machine it then takes the CPU from
# the one it waits for, and two threads were seen to take forty times as long as one.  libgomp reads this when it is
# loaded, which is now; the environment is left as it was.
patient = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}.isdisjoint(os.environ)
if patient:
    os.environ["GOMP_SPINCOUNT"] = "1000"
try:
    if TYPE_CHECKING:
        from . import baseline as variant  # stands for all, which have the same names
    else:
        variant = load(isa)         # the engine of float64; what is compiled once (core.pyi) is in each
finally:
    if patient:
        del os.environ["GOMP_SPINCOUNT"]

engines: dict[str, Any] = {"d": variant}        # by the character of the dtype; the other is loaded when it is needed


def engine(dtype: Any) -> Any:
    """The compiled module of this instruction set whose values have that numpy.dtype, float64 or float32."""
    try:
        return engines[dtype.char]
    except KeyError:
        return engines.setdefault(dtype.char, load(f"{isa}_{dtype.name}"))


def remade(name: str, arguments: tuple[Any, ...], taken: tuple[bytes, float] | None = None) -> Any:
    """What pickle makes of compiled data and batches: that class of the present variant, a batch filled again.

    taken: (indices as bytes of int64, total), or None.
    """
    made = getattr(variant, name)(*arguments)
    if taken is not None:
        indices, total = taken
        made.take(memoryview(indices).cast("q"), total)
    return made
