# The gradients of small token and position tables and of a small lm_head.  They are summed over chunks of tokens, each
# chunk by the thread that has those tokens in its cache, and then the chunks' sums are added in order: reading what
# another core has just written would cost more.  The cut depends on the batch alone, so the bits do not depend on the
# number of threads.
#
# Uses: declarations, simd, logits.

cdef enum:
    CHUNK_TOKENS = 128
    MAX_CHUNKS = 8


cdef struct Chunks:
    Py_ssize_t size         # values that a chunk sums
    real *sums              # (chunks - 1, size) of all chunks but the first


cdef Py_ssize_t chunks_of(Py_ssize_t N, Py_ssize_t rows) noexcept nogil:
    """How many chunks N tokens are cut into, if the token and the position table have so many rows together: a power of
    two, which threads share evenly."""
    cdef Py_ssize_t chunks = 1
    if rows <= V_TILE:
        while chunks < MAX_CHUNKS and 2 * chunks * CHUNK_TOKENS <= N:
            chunks *= 2
    return chunks


cdef void lay_out_chunks(Chunks *c, Arena *arena, Py_ssize_t N, Py_ssize_t rows, Py_ssize_t size) noexcept nogil:
    c.size = size
    c.sums = take_values(arena, chunks_of(N, rows) - 1, size)


cdef inline real *chunk_grad(const Chunks *c, real *grad, Py_ssize_t chunk) noexcept nogil:
    """Where a chunk's sums go: the first chunk's into the gradient itself."""
    return grad if chunk == 0 else c.sums + (chunk - 1) * c.size


cdef void add_chunks(const Chunks *c, real *grad, Py_ssize_t chunks) noexcept nogil:
    """Add each chunk's sums to grad (size,), in order."""
    cdef Py_ssize_t chunk, i
    cdef const real *sums
    for chunk in range(1, chunks):
        sums = chunk_grad(c, grad, chunk)
        for i in range(c.size):
            grad[i] += sums[i]
