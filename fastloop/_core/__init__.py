"""Chooses the compiled variant for the running CPU when it is first imported.

FASTLOOP_ISA=baseline, avx2 or avx512 forces one.  Nothing else lives here: the kernels are in csrc/.
"""

import importlib
import os

try:
    from . import cpu
except ImportError as error:
    raise ImportError(
        f"fastloop's compiled modules are missing or do not load ({error}); run `pip install .` in its folder"
    ) from error

supported = cpu.supported()
compiler = cpu.compiler
isa = os.environ.get("FASTLOOP_ISA") or supported[0]
if isa not in supported:
    raise ImportError(f"FASTLOOP_ISA = {isa!r} is not one of {', '.join(supported)}, which this CPU can run")

variant = importlib.import_module(f".{isa}", __name__)
