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


def logits_forward(const double[:, ::1] x not None, const double[:, ::1] lm_head not None,
                   double[:, ::1] logits not None):
    cdef Py_ssize_t N = x.shape[0], D = x.shape[1], V = lm_head.shape[0]
    cdef Py_ssize_t n, v, v_tile, tokens, rows
    cdef Buffer work = Buffer()
    cdef double *panel = NULL
    cdef double *tile = NULL
    while work.lays_out():
        panel = take_values(&work.arena, 8, D)
        tile = take_values(&work.arena, 8, V_TILE)
    with nogil:
        for n in range(0, N, 8):
            tokens = min(N - n, 8)
            transpose_rows(&x[n, 0], D, tokens, D, panel)
            for v_tile in range(tiles(V, V_TILE)):
                v = v_tile * V_TILE
                rows = min(V - v, V_TILE)
                logits_tile(panel, &lm_head[v, 0], rows, D, tile)
                transpose_panel(tile, tokens, rows, &logits[n, v], V)


def logits_backward(const double[:, ::1] x not None, const double[:, ::1] lm_head not None,
                    const double[:, ::1] dlogits not None, double[:, ::1] dx not None,
                    double[:, ::1] dlm_head not None):
    cdef Py_ssize_t N = x.shape[0], D = x.shape[1], V = lm_head.shape[0]
    cdef Py_ssize_t n, v, v_tile, rows, tokens, ld = padded(D), panels = round8(N)
    cdef Buffer work = Buffer()
    cdef double *x_rows = NULL
    cdef double *weight = NULL
    cdef double *tile = NULL
    while work.lays_out():
        x_rows = take_values(&work.arena, panels, ld)
        weight = take_values(&work.arena, V_TILE, ld)
        tile = take_values(&work.arena, panels, V_TILE)
    with nogil:
        if N:
            copy_rows(&x[0, 0], N, D, x_rows, ld)
        for v_tile in range(tiles(V, V_TILE)):
            v = v_tile * V_TILE
            rows = min(V - v, V_TILE)
            copy_rows(&lm_head[v, 0], rows, D, weight, ld)
            for n in range(0, N, 8):
                tokens = min(N - n, 8)
                transpose_rows(&dlogits[n, v], V, tokens, rows, tile + n * V_TILE)
                logits_dx(tile + n * V_TILE, tokens, rows, weight, ld, D, &dx[n, 0], D, v > 0)
            logits_dw(tile, 8 * V_TILE, rows, N, x_rows, ld, D, &dlm_head[v, 0], True)
