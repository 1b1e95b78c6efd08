# Logits, forward and backward: logits (N, V) = x (N, D) lm_head (V, D)^T.
#
# Uses: declarations, simd, matmul.

# Rows of lm_head at a time; with D = 256 they take half of an L2 cache of 512 KiB.
cdef enum:
    V_TILE = 128


cdef inline int logits_threads(Py_ssize_t N, Py_ssize_t V, Py_ssize_t D) noexcept nogil:
    """Threads for the backward of one tile of the vocabulary: two products, two operations to a term."""
    return threads_in_pass(4 * N * min(V, V_TILE) * D)


cdef inline void logits_tile(const real *x_panel, const real *lm_head, Py_ssize_t rows, Py_ssize_t D,
                             real *logits) noexcept nogil:
    """logits (rows, PANEL) of one panel x_panel (D, PANEL), for `rows` rows of lm_head."""
    matmul(rows, PANEL, D, lm_head, D, 1, PANEL, x_panel, PANEL, logits, PANEL, False)


cdef inline void logits_dx(const real *dlogits, Py_ssize_t tokens, Py_ssize_t rows, const real *lm_head,
                           Py_ssize_t ldw, Py_ssize_t D, real *dx, Py_ssize_t ldx, bint add) noexcept nogil:
    """dx (tokens, D) = dlogits^T lm_head for one panel dlogits (rows, PANEL); += where `add`."""
    matmul(tokens, D, rows, dlogits, 1, PANEL, BLOCK, lm_head, ldw, dx, ldx, add)


cdef inline void logits_dw(const real *dlogits, Py_ssize_t panel, Py_ssize_t rows, Py_ssize_t N, const real *x,
                           Py_ssize_t ldx, Py_ssize_t D, real *dlm_head, bint add) noexcept nogil:
    """dlm_head (rows, D) = dlogits x over all N tokens, or += where `add`; dlogits' panels lie `panel` values apart."""
    matmul(rows, D, N, dlogits, PANEL, 1, panel, x, ldx, dlm_head, D, add)


cdef void logits_rows(Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const real *x, const real *lm_head, real *logits,
                      real *panel, real *tile) noexcept nogil:
    """logits (N, V) = x (N, D) lm_head (V, D)^T, all row by row; scratch: panel (D, PANEL) and tile (V_TILE, PANEL)."""
    cdef Py_ssize_t p, n, v, v_tile, tokens, rows
    for p in range(tiles(N, PANEL)):
        n = PANEL * p
        tokens = min(N - n, PANEL)
        transpose_rows(x + n * D, D, tokens, D, panel)
        for v_tile in range(tiles(V, V_TILE)):
            v = v_tile * V_TILE
            rows = min(V - v, V_TILE)
            logits_tile(panel, lm_head + v * D, rows, D, tile)
            transpose_panel(tile, tokens, rows, logits + n * V + v, V)


cdef void logits_rows_grad(Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const real *x, const real *lm_head,
                           const real *dlogits, real *dx, real *dlm_head, real *x_rows, real *weight,
                           real *tile) noexcept nogil:
    """dx (N, D) = dlogits (N, V) lm_head (V, D), and dlm_head += dlogits^T x.

    Scratch, with ld = padded(D): x_rows (N, ld), weight (V_TILE, ld) and tile (N / PANEL, V_TILE, PANEL).
    """
    cdef Py_ssize_t p, n, v, v_tile, rows, tokens, ld = padded(D)
    copy_rows(x, N, D, x_rows, ld)
    for v_tile in range(tiles(V, V_TILE)):
        v = v_tile * V_TILE
        rows = min(V - v, V_TILE)
        copy_rows(lm_head + v * D, rows, D, weight, ld)
        for p in range(tiles(N, PANEL)):
            n = PANEL * p
            tokens = min(N - n, PANEL)
            transpose_rows(dlogits + n * V + v, V, tokens, rows, tile + n * V_TILE)
            logits_dx(tile + n * V_TILE, tokens, rows, weight, ld, D, dx + n * D, D, v > 0)
        logits_dw(tile, PANEL * V_TILE, rows, N, x_rows, ld, D, dlm_head + v * D, True)
