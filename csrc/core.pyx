# What Python calls, compiled once: memory and threads, data and batches, the abstract kernels, models and optimisers,
# and the training loop.  The arithmetic is in the engines, one for each instruction set and precision (engine.pxi),
# whose classes derive from these and override the functions that run without the GIL.  declarations.pxi is what they
# see.
#
# Arrays from Python arrive in def functions that are all here: values of either precision as Floats, others as typed
# memoryviews, Cython's code for which would be compiled into every engine.  fastloop/ checks the sizes before it calls;
# the engines get pointers, and do not check again.
#
# No list comprehensions: where one runs out of memory, Cython 3.3 frees the current item twice.
#
# Uses: what it includes.

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython.parallel cimport prange
from libc.math cimport INFINITY, NAN, fabs, isfinite
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.string cimport memcpy, memset

include "base/arena.pxi"
include "base/floats.pxi"
include "base/threads.pxi"
include "data/tokens.pxi"
include "data/arrays.pxi"
include "data/any.pxi"
include "models/model.pxi"
include "models/own.pxi"
include "step/optimizer.pxi"
include "step/loop.pxi"
include "step/tensors.pxi"
include "kernels.pxi"
