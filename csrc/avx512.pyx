# The kernels for AVX-512 (F, DQ, VL).
include "engine.pxi"
