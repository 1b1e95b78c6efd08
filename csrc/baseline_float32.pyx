# The float32 engine for the compiler's baseline instruction set (SSE2 on x86-64, NEON on 64-bit Arm).
# Uses: what it includes.
include "engine.pxi"
