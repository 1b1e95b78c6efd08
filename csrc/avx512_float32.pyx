# The float32 engine for AVX-512 (F, DQ, VL).
# Uses: what it includes.
include "engine.pxi"
