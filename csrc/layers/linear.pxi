# Linear layers on panels: y (out, 8) = W (out, in) x (in, 8) for each panel, the gradient of x, and that of W.
#
# A weight matrix of a wide model is larger than the cache, so each loop reads a block of it once for all the panels
# at hand.  With few panels the rows are what the threads share.

# Rows of W at a time in linear_forward, so that with 256 columns they are 64 KiB of L2 while the panels go past.
# Tokens at a time in linear_dw: their strips of x stay in L2 while W goes past.
cdef enum:
    FORWARD_ROWS = 32
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


cdef void linear_dx(const double *W, const double *packed, Py_ssize_t out, Py_ssize_t D, const double *dy, double *dx,
                    Py_ssize_t panels, bint parallel) noexcept nogil:
    """dx (panels, D, 8) = W^T dy, of dy (panels, out, 8); packed is what pack_columns made of W, or NULL."""
    cdef int threads = threads_for(16 * panels * out * D) if parallel else 1, i
    if threads == 1:
        linear_dx_columns(W, packed, out, 0, D, D, dy, dx, panels)
        return
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        linear_dx_columns(W, packed, out, share(D, i, threads), share(D, i + 1, threads), D, dy, dx, panels)


cdef void linear_dx_columns(const double *W, const double *packed, Py_ssize_t out, Py_ssize_t first, Py_ssize_t last,
                            Py_ssize_t D, const double *dy, double *dx, Py_ssize_t panels) noexcept nogil:
    # W as it is gets read down its columns: where a row is long, few rows at a time, or they evict each other.
    cdef Py_ssize_t rows = 256 if D <= 128 else 16, block, i_block, i_tile, i, k, p
    if packed == NULL:
        for block in range(tiles(out, rows)):
            k = block * rows
            for p in range(panels):
                matmul(last - first, 8, min(out - k, rows), W + k * D + first, 1, D, 8 * D, dy + 8 * (p * out + k), 8,
                       dx + 8 * (p * D + first), 8, k > 0)
        return
    for i_block in range(tiles(last - first, 24)):     # a multiple of every FL_ROWS
        block = first + 24 * i_block
        for p in range(panels):
            for i_tile in range(tiles(min(last - block, 24), FL_ROWS)):
                i = block + i_tile * FL_ROWS
                matmul(min(last - i, FL_ROWS), 8, out, packed + i * out, 1, FL_ROWS, 8 * FL_ROWS, dy + 8 * p * out, 8,
                       dx + 8 * (p * D + i), 8, False)


cdef void pack_columns(const double *W, Py_ssize_t out, Py_ssize_t D, Py_ssize_t first, Py_ssize_t last,
                       double *packed) noexcept nogil:
    """W (out, D) in strips of a tile's columns, (columns first..last / FL_ROWS, out, FL_ROWS), for linear_dx to read
    in the order of memory.  It costs about as much as two or three panels win."""
    cdef Py_ssize_t i_tile, i, k, rows
    for i_tile in range(tiles(last - first, FL_ROWS)):
        i = first + i_tile * FL_ROWS
        rows = min(last - i, FL_ROWS)
        for k in range(out):
            if rows == FL_ROWS:         # a constant size is a plain vector move
                memcpy(packed + i * out + k * FL_ROWS, W + k * D + i, FL_ROWS * sizeof(double))
            else:
                memcpy(packed + i * out + k * FL_ROWS, W + k * D + i, rows * sizeof(double))


cdef double *take_packed(Arena *arena, Py_ssize_t out, Py_ssize_t D) noexcept nogil:
    """Room for what pack_columns makes of W (out, D)."""
    return take_values(arena, times(out, tiles(D, FL_ROWS)), FL_ROWS)


cdef void linear_dw(const double *dy, Py_ssize_t out, Py_ssize_t first, Py_ssize_t last, Py_ssize_t N,
                    const double *x, Py_ssize_t stride, Py_ssize_t D, double *dW, bint add) noexcept nogil:
    """Rows first..last of dW (out, D) = dy^T x over N tokens in order, or += where `add`; dy in panels, x in strips.

    dW is walked row by row, so that a large one streams through the cache once.  The panels' rows for a tile are
    first copied together: where they lie apart by a power of two they would evict each other.
    """
    cdef Py_ssize_t block, i_tile, i, n, p, r, rows, tokens, panel, whole = D & ~<Py_ssize_t>7
    cdef double[DW_TOKENS * FL_ROWS] together
    cdef const double *A
    for block in range(tiles(N, DW_TOKENS)):
        n = block * DW_TOKENS
        tokens = min(N - n, DW_TOKENS)
        for i_tile in range(tiles(last - first, FL_ROWS)):
            i = first + i_tile * FL_ROWS
            rows = min(last - i, FL_ROWS)
            A = dy + n * out + 8 * i
            panel = 8 * out
            if tokens > 8:
                for p in range(tiles(tokens, 8)):
                    for r in range(rows):
                        v8_store(together + 8 * (FL_ROWS * p + r), v8_load(A + p * panel + 8 * r))
                A = together
                panel = 8 * FL_ROWS
            fl_tiles(rows, whole, tokens, A, 8, 1, panel, x + 8 * n, 8, stride, dW + i * D, D, add or n > 0)
            if whole < D:
                edge_tiles(D - whole, rows, tokens, A, 8, 1, panel, x + (whole >> 3) * stride + 8 * n, 8,
                           dW + i * D + whole, D, add or n > 0)


cdef inline Py_ssize_t share(Py_ssize_t n, int i, int threads) noexcept nogil:
    """Where the share of thread i begins: n cut into whole tiles, of any instruction set."""
    return n if i == threads else n * i // threads // 24 * 24
