# Logits and their backward: logits (N, V) = x (N, D) lm_head (V, D)^T.

# Rows of lm_head worked on at a time; with D = 256 they take half of a 512 KiB L2 cache.
cdef enum:
    V_TILE = 128


cdef inline void logits_tile(const double *x_panel, const double *lm_head, Py_ssize_t rows, Py_ssize_t D,
                             double *logits) noexcept nogil:
    """logits (rows, 8) of one panel x_panel (D, 8), for `rows` rows of lm_head."""
    matmul(rows, 8, D, lm_head, D, 1, 8, x_panel, 8, logits, 8, False)


cdef inline void logits_dx(const double *dlogits, Py_ssize_t tokens, Py_ssize_t rows, const double *lm_head,
                           Py_ssize_t ldw, Py_ssize_t D, double *dx, Py_ssize_t ldx, bint add) noexcept nogil:
    """dx (tokens, D) = dlogits^T lm_head for one panel dlogits (rows, 8); += where `add`."""
    matmul(tokens, D, rows, dlogits, 1, 8, 64, lm_head, ldw, dx, ldx, add)


cdef inline void logits_dw(const double *dlogits, Py_ssize_t panel, Py_ssize_t rows, Py_ssize_t N, const double *x,
                           Py_ssize_t ldx, Py_ssize_t D, double *dlm_head, bint add) noexcept nogil:
    """dlm_head (rows, D) = dlogits x over all N tokens, or += where `add`; dlogits' panels lie `panel` values apart."""
    matmul(rows, D, N, dlogits, 8, 1, panel, x, ldx, dlm_head, D, add)


cdef void logits_rows(Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const double *x, const double *lm_head, double *logits,
                      double *panel, double *tile) noexcept nogil:
    """logits (N, V) = x (N, D) lm_head (V, D)^T, all row by row; scratch: panel (D, 8) and tile (V_TILE, 8)."""
    cdef Py_ssize_t n, v, v_tile, tokens, rows
    for n in range(0, N, 8):
        tokens = min(N - n, 8)
        transpose_rows(x + n * D, D, tokens, D, panel)
        for v_tile in range(tiles(V, V_TILE)):
            v = v_tile * V_TILE
            rows = min(V - v, V_TILE)
            logits_tile(panel, lm_head + v * D, rows, D, tile)
            transpose_panel(tile, tokens, rows, logits + n * V + v, V)


cdef void logits_rows_grad(Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const double *x, const double *lm_head,
                           const double *dlogits, double *dx, double *dlm_head, double *x_rows, double *weight,
                           double *tile) noexcept nogil:
    """dx (N, D) of dlogits (N, V), and what they add to dlm_head (V, D).

    Scratch, with ld = padded(D): x_rows (N, ld), weight (V_TILE, ld) and tile (N / 8, V_TILE, 8).
    """
    cdef Py_ssize_t n, v, v_tile, rows, tokens, ld = padded(D)
    copy_rows(x, N, D, x_rows, ld)
    for v_tile in range(tiles(V, V_TILE)):
        v = v_tile * V_TILE
        rows = min(V - v, V_TILE)
        copy_rows(lm_head + v * D, rows, D, weight, ld)
        for n in range(0, N, 8):
            tokens = min(N - n, 8)
            transpose_rows(dlogits + n * V + v, V, tokens, rows, tile + n * V_TILE)
            logits_dx(tile + n * V_TILE, tokens, rows, weight, ld, D, dx + n * D, D, v > 0)
        logits_dw(tile, 8 * V_TILE, rows, N, x_rows, ld, D, dlm_head + v * D, True)
