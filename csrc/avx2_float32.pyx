# The float32 engine for AVX2 with FMA.
# Uses: what it includes.
include "engine.pxi"
