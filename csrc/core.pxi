# The compiled half of fastloop.  Each instruction set's .pyx includes this file, so that one source
# gives every variant; the flags differ, nothing else does (setup.py).
#
# How the work is laid out.  Activations live in *panels* of eight tokens: x[panel][feature][token], so that one
# v8 (simd.h) holds one feature of eight tokens.  A softmax over the vocabulary then needs no sum across
# lanes, a matrix product reads its right-hand side in the order of memory, and a document of up to eight
# tokens is a single panel.  Lanes past the last token hold zeros.  What is multiplied token by token
# into a weight gradient also exists in rows, x[token][feature], each row padded to whole v8s.
#
# Where types are declared: sizes are Py_ssize_t (B documents, N tokens, P panels, D width, V vocabulary,
# T positions), token ids int64.  Arrays from Python come as typed memoryviews in the def functions and are
# checked by their callers in fastloop/; the cdef loops take pointers and do not check again.
#
# The same bits whatever the number of threads: every output element is computed by one thread, in an order
# that does not depend on how many there are.  Compiler directives are set once, in setup.py.
#
# No list comprehensions: where one runs out of memory, Cython 3.3 frees the item at hand twice.

from _thread import get_ident
from zlib import crc32

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython.parallel cimport prange
from libc.math cimport INFINITY, expm1, fabs, isfinite, ldexp, log, log1p, sqrt
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.string cimport memcpy, memset, strcmp

include "simd.pxi"
include "arena.pxi"
include "memory.pxi"
include "matmul.pxi"
include "embedding.pxi"
include "linear.pxi"
include "logits.pxi"
include "cross_entropy.pxi"
include "norm.pxi"
include "optimizer.pxi"
include "adam.pxi"
include "sgd.pxi"
include "tokens.pxi"
include "model.pxi"
include "head.pxi"
include "bigram.pxi"
include "pointwise.pxi"
include "attention.pxi"
include "gpt.pxi"
include "arrays.pxi"
include "mlp.pxi"
include "loop.pxi"
