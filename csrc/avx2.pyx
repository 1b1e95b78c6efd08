# The kernels for AVX2 with FMA.
include "engine.pxi"
