# The engine: all arithmetic, compiled for each instruction set and precision.  The .pyx file of each includes this
# one; only the compiler's flags differ (setup.py).
#
# Layout.  Activations lie in *panels* of PANEL tokens, x[panel][feature][token], so that one vec (base/simd.h) is one
# feature of PANEL tokens.  A softmax over the vocabulary then needs no sum across lanes, a matrix product reads its
# right-hand side in the order of memory, and a document of up to PANEL tokens is a single panel.  Lanes past the last
# token hold zeros.  What a weight gradient sums over tokens also exists in rows, x[token][feature], each row padded to
# whole panels.
#
# Sizes are Py_ssize_t: B documents, N tokens, P panels, D features, V ids in the vocabulary, T positions.  Ids are
# int64.  No typed memoryviews here: core.pyx has them, and passes pointers on.
#
# The same bits at any number of threads: every output element is computed by one thread, in an order that does not
# depend on how many there are.  Compiler directives are set once, in setup.py.
#
# Uses: declarations, what it includes.

from cython.parallel cimport prange
from libc.math cimport INFINITY, exp, expm1, fabs, isfinite, ldexp, log, log1p, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from fastloop._core.core cimport (
    NORM_BLOCK, Arena, ArrayBatch, ArrayModel, Batch, Buffer, Kernels, LanguageModel, Model, Optimizer, Part, Rows,
    Segment, TokenBatch, Tokens, norm_blocks, padded_to, round_up, share, take, threads_for, threads_in_pass, tiles,
    times, weighted_sum,
)

include "base/simd.pxi"
include "base/matmul.pxi"
include "layers/layer.pxi"
include "layers/logits.pxi"
include "layers/cross_entropy.pxi"
include "layers/chunks.pxi"
include "layers/linear.pxi"
include "layers/rmsnorm.pxi"
include "layers/activation.pxi"
include "layers/attention.pxi"
include "layers/head.pxi"
include "layers/embedding.pxi"
include "models/language.pxi"
include "models/bigram.pxi"
include "models/gpt.pxi"
include "models/mlp.pxi"
include "step/norm.pxi"
include "step/adam.pxi"
include "step/sgd.pxi"
include "engine_kernels.pxi"
include "one_layer.pxi"
