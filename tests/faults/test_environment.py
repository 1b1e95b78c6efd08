"""Importing and training leave the floating-point environment alone: rounding, and subnormal numbers.

A module linked with -ffast-math would flush subnormal numbers to zero in the whole process.
"""

import os
import sys

import cases
import pytest

CODE = """
import ctypes, sys
libm = ctypes.CDLL("libm.so.6")
environments = []

def look():
    state = ctypes.create_string_buffer(64)         # fenv_t: control words of the x87 and SSE units, and flags
    assert libm.fegetenv(state) == 0
    mxcsr = int.from_bytes(state.raw[28:32], "little")
    environments.append((libm.fegetround(), mxcsr & ~0x3F, sys.float_info.min * float("0.5"), 1.0 / float("3")))

libm.fesetround(int(sys.argv[1]))
look()
sys.path.insert(0, sys.argv[2])
import cases, fastloop as fl
look()
for model in cases.MODELS:
    cases.make(model).fit(*cases.data(model)[0], steps=20)
look()
assert environments[0] == environments[1] == environments[2], environments
assert environments[0][0] == int(sys.argv[1])
assert environments[0][2] != 0.0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into glibc's fenv_t")
@pytest.mark.parametrize("rounding", [0, 0x400, 0x800, 0xC00], ids=["nearest", "down", "up", "to zero"])
def test_the_floating_point_environment_is_left_alone(rounding):
    if os.uname().machine != "x86_64":
        pytest.skip("rounding modes have other numbers here")
    done = cases.python("-c", CODE, rounding, cases.Path(__file__).parent)
    assert done.returncode == 0, done.stderr
