# The matrix product that every model is made of, transposes, and copies into padded rows.
#
# No BLAS.  On one Zen 4 core, whose peak is 59 GFLOP/s, a product of two (512, 512) matrices takes 4.9 ms here with
# AVX-512 (54.6 GFLOP/s) and 5.4 ms in NumPy's OpenBLAS, and 5.5 ms in both with AVX2.  At (64, 64, 256) they are level,
# and below that calling BLAS costs more than the product.  With a large vocabulary and AVX2, BLAS would be a tenth
# faster, but its results would depend on the number of threads and on the library.
#
# Uses: declarations, simd.

# Rows of B at a time: of a tile's columns, a cache line for each row, 256 rows are 16 KiB, which stay in the L1 cache
# while A is read.
cdef enum:
    K_BLOCK = 256
    BLOCK = PANEL * PANEL       # values in a panel of PANEL features


cdef void edge_tiles(Py_ssize_t columns, Py_ssize_t M, Py_ssize_t K, const real *A, Py_ssize_t a_row,
                     Py_ssize_t a_col, Py_ssize_t a_block, const real *B, Py_ssize_t ldb, real *C,
                     Py_ssize_t ldc, bint accumulate) noexcept nogil:
    """The last columns of C, fewer than PANEL, in a copy, so as not to write past them."""
    cdef real[BLOCK] edge
    cdef Py_ssize_t block, i, r
    for block in range(tiles(M, PANEL)):
        i = PANEL * block
        memset(edge, 0, sizeof(edge))
        for r in range(min(M - i, PANEL)):
            memcpy(edge + PANEL * r, C + (i + r) * ldc, columns * sizeof(real))
        fl_tiles(min(M - i, PANEL), PANEL, K, A + i * a_row, a_row, a_col, a_block, B, ldb, 0, edge, PANEL, accumulate)
        for r in range(min(M - i, PANEL)):
            memcpy(C + (i + r) * ldc, edge + PANEL * r, columns * sizeof(real))


cdef void matmul(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                 const real *A, Py_ssize_t a_row, Py_ssize_t a_col, Py_ssize_t a_block,
                 const real *B, Py_ssize_t ldb, real *C, Py_ssize_t ldc, bint accumulate) noexcept nogil:
    """C (M, N) = A (M, K) B (K, N), or C += where `accumulate`; C and B row by row.

    A is read one value at a time, so it may have any strides: A[i, k] is A[i a_row + (k // PANEL) a_block +
    (k % PANEL) a_col], and for a plain matrix a_block is PANEL a_col.  B is read PANEL columns at a time: its rows must
    be readable up to a multiple of that.  The sum over k goes in order, from C on.
    """
    cdef Py_ssize_t strip, j, k, k_tile, depth
    cdef const real *a
    for k_tile in range(tiles(K, K_BLOCK)):
        k = k_tile * K_BLOCK
        depth = min(K - k, K_BLOCK)
        a = A + (k // PANEL) * a_block
        for strip in range(N // PANEL):
            j = PANEL * strip
            fl_tiles(M, PANEL, depth, a, a_row, a_col, a_block, B + k * ldb + j, ldb, 0, C + j, ldc,
                     accumulate or k > 0)
        if N % PANEL:
            j = N // PANEL * PANEL
            edge_tiles(N - j, M, depth, a, a_row, a_col, a_block, B + k * ldb + j, ldb, C + j, ldc, accumulate or k > 0)


cdef void transpose_rows(const real *x, Py_ssize_t ldx, Py_ssize_t tokens, Py_ssize_t D,
                         real *panel) noexcept nogil:
    """panel (D, PANEL) = x (tokens, D) transposed, tokens <= PANEL; the lanes past the last token are zeroed."""
    cdef Py_ssize_t d = 0, t
    if tokens == PANEL:
        while d + PANEL <= D:
            fl_transpose(x + d, ldx, panel + PANEL * d, PANEL)
            d += PANEL
    while d < D:
        for t in range(PANEL):
            panel[PANEL * d + t] = x[t * ldx + d] if t < tokens else 0.0
        d += 1


cdef void transpose_panel(const real *panel, Py_ssize_t tokens, Py_ssize_t D, real *x,
                          Py_ssize_t ldx) noexcept nogil:
    """x (tokens, D) = panel (D, PANEL) transposed, tokens <= PANEL."""
    cdef Py_ssize_t d = 0, t
    if tokens == PANEL:
        while d + PANEL <= D:
            fl_transpose(panel + PANEL * d, PANEL, x + d, ldx)
            d += PANEL
    while d < D:
        for t in range(tokens):
            x[t * ldx + d] = panel[PANEL * d + t]
        d += 1


cdef void transpose_strips(const real *panel, Py_ssize_t D, real *strips, Py_ssize_t stride) noexcept nogil:
    """panel (D, PANEL) transposed in strips of PANEL features: strips (D / PANEL, PANEL tokens, PANEL features), each
    `stride` values after the one before."""
    cdef Py_ssize_t d = 0, i, t
    while d + PANEL <= D:
        fl_transpose(panel + PANEL * d, PANEL, strips + (d // PANEL) * stride, PANEL)
        d += PANEL
    if d < D:
        strips += (d // PANEL) * stride
        for t in range(PANEL):
            for i in range(PANEL):
                strips[PANEL * t + i] = panel[PANEL * (d + i) + t] if d + i < D else 0.0


cdef void copy_rows(const real *A, Py_ssize_t rows, Py_ssize_t D, real *out, Py_ssize_t ld) noexcept nogil:
    """out (rows, ld) = A (rows, D), the columns past D zeroed."""
    cdef Py_ssize_t i
    for i in range(rows):
        memcpy(out + i * ld, A + i * D, D * sizeof(real))
        memset(out + i * ld + D, 0, (ld - D) * sizeof(real))
