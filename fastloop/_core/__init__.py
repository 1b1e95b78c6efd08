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

# A thread that waits for another spins first, by default for milliseconds: on a busy machine it then takes the CPU from
# the one it waits for, and two threads were seen to take forty times as long as one.  libgomp reads this when it is
# loaded, which is now; the environment is left as it was.
patient = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}.isdisjoint(os.environ)
if patient:
    os.environ["GOMP_SPINCOUNT"] = "1000"
try:
    variant = importlib.import_module(f".{isa}", __name__)
finally:
    if patient:
        del os.environ["GOMP_SPINCOUNT"]
