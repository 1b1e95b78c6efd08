# The kernels for AVX2 with FMA.
include "core.pxi"
