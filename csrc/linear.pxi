# Linear layers on panels: y (out, 8) = W (out, in) x (in, 8) for each panel, the gradient of x, and that of W.
#
# A weight matrix of a wide model is larger than the cache, so each loop reads a block of it once for all the panels
# at hand.  With few panels the rows are what the threads share.

# Rows of W at a time in linear_forward, so that with 256 columns they are 64 KiB of L2 while the panels go past.
# In linear_dx W is read down its columns: where a row is a power of two long, more rows than the L1 cache has ways
# evict each other.  In linear_dw, tokens at a time: their rows of x stay in L2 while W goes past.
cdef enum:
    FORWARD_ROWS = 32
    DX_ROWS = 16
    DW_TOKENS = 128


cdef void linear_forward(const double *W, Py_ssize_t out, Py_ssize_t D, const double *x, double *y, Py_ssize_t panels,
                         bint accumulate, bint parallel) noexcept nogil:
    """y (panels, out, 8) = W x, or += where `accumulate`, of x (panels, D, 8)."""
    cdef int threads = threads_for(16 * panels * out * D) if parallel else 1, i
    if threads == 1:
        linear_forward_rows(W, 0, out, out, D, x, y, panels, accumulate)
        return
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        linear_forward_rows(W, share(out, i, threads), share(out, i + 1, threads), out, D, x, y, panels, accumulate)


cdef void linear_forward_rows(const double *W, Py_ssize_t first, Py_ssize_t last, Py_ssize_t out, Py_ssize_t D,
                              const double *x, double *y, Py_ssize_t panels, bint accumulate) noexcept nogil:
    cdef Py_ssize_t block, i, p
    for block in range(tiles(last - first, FORWARD_ROWS)):
        i = first + block * FORWARD_ROWS
        for p in range(panels):
            matmul(min(last - i, FORWARD_ROWS), 8, D, W + i * D, D, 1, 8, x + 8 * p * D, 8, y + 8 * (p * out + i), 8,
                   accumulate)


cdef void linear_dx(const double *W, Py_ssize_t out, Py_ssize_t D, const double *dy, double *dx, Py_ssize_t panels,
                    bint parallel) noexcept nogil:
    """dx (panels, D, 8) = W^T dy, of dy (panels, out, 8)."""
    cdef int threads = threads_for(16 * panels * out * D) if parallel else 1, i
    if threads == 1:
        linear_dx_columns(W, out, 0, D, D, dy, dx, panels)
        return
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        linear_dx_columns(W, out, share(D, i, threads), share(D, i + 1, threads), D, dy, dx, panels)


cdef void linear_dx_columns(const double *W, Py_ssize_t out, Py_ssize_t first, Py_ssize_t last, Py_ssize_t D,
                            const double *dy, double *dx, Py_ssize_t panels) noexcept nogil:
    cdef Py_ssize_t block, k, p
    for block in range(tiles(out, DX_ROWS)):
        k = block * DX_ROWS
        for p in range(panels):
            matmul(last - first, 8, min(out - k, DX_ROWS), W + k * D + first, 1, D, 8 * D, dy + 8 * (p * out + k), 8,
                   dx + 8 * (p * D + first), 8, k > 0)


cdef void linear_dw(const double *dy, Py_ssize_t out, Py_ssize_t first, Py_ssize_t last, Py_ssize_t N,
                    const double *x, Py_ssize_t ldx, Py_ssize_t D, double *dW) noexcept nogil:
    """Rows first..last of dW (out, D) += dy^T x over N tokens in order, of dy in panels and x (N, ldx) in rows.

    dW is walked row by row, so that a large one streams through the cache once.
    """
    cdef Py_ssize_t block, i_tile, i, n
    for block in range(tiles(N, DW_TOKENS)):
        n = block * DW_TOKENS
        for i_tile in range(tiles(last - first, FL_ROWS)):
            i = first + i_tile * FL_ROWS
            matmul(min(last - i, FL_ROWS), D, min(N - n, DW_TOKENS), dy + n * out + 8 * i, 8, 1, 8 * out,
                   x + n * ldx, ldx, dW + i * D, D, True)


cdef inline Py_ssize_t share(Py_ssize_t n, int i, int threads) noexcept nogil:
    """Where the share of thread i begins: n cut into whole tiles of eight."""
    return n if i == threads else (n * i // threads) & ~<Py_ssize_t>7
