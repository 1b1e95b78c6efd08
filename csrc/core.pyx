# What Python faces, compiled once: memory and threads, data and batches, the abstract kernels, models and optimisers,
# and the loop over them.  What computes is in the engines, one for each instruction set (engine.pxi), whose classes
# derive from these and override the functions that run without the GIL.  declarations.pxi says what the engines see.
#
# Arrays from Python come as typed memoryviews in the def functions, which are all here: Cython's code for them would
# be compiled into every engine.  Sizes are checked by the callers in fastloop/; pointers go on to the engines, which do
# not check again.
#
# No list comprehensions: where one runs out of memory, Cython 3.3 frees the item at hand twice.

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.math cimport INFINITY, fabs, isfinite
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.string cimport memcpy, memset, strcmp

cdef object crc32, get_ident        # no names of the module: what has one is in every variant
from _thread import get_ident
from zlib import crc32

include "base/arena.pxi"
include "base/threads.pxi"
include "kernels.pxi"
include "data/tokens.pxi"
include "data/arrays.pxi"
include "models/model.pxi"
include "step/optimizer.pxi"
include "step/loop.pxi"
