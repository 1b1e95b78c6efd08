# The matrix product that every model is made of, transposes, and copies into padded rows.
#
# No BLAS.  A GPT's step takes 1.1 to 1.2 times what its products alone would take at the speed of NumPy's OpenBLAS in a
# product of two (512, 512) matrices (float64, D 64 to 256, 16 documents or more, one Sapphire Rapids core, AVX-512 and
# AVX2); in small products calling BLAS costs more than the product.  With a large vocabulary and AVX2, BLAS would be a
# tenth faster, but its results would depend on the number of threads and on the library.
#
# Uses: declarations, simd.

# Rows of B at a time: of a strip, a cache line for each row, 256 rows are 16 KiB, and a tile's strips stay in the L1
# cache while A is read.
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
        fl_tiles(min(M - i, PANEL), PANEL, K, A + i * a_row, a_row, a_col, a_block, B, ldb, 0, edge, PANEL,
                 0, accumulate)
        for r in range(min(M - i, PANEL)):
            memcpy(C + (i + r) * ldc, edge + PANEL * r, columns * sizeof(real))


cdef void matmul_strips(Py_ssize_t M, Py_ssize_t strips, Py_ssize_t K,
                        const real *A, Py_ssize_t a_row, Py_ssize_t a_col, Py_ssize_t a_block,
                        const real *B, Py_ssize_t ldb, Py_ssize_t b_strip, real *C, Py_ssize_t ldc, Py_ssize_t c_strip,
                        bint accumulate) noexcept nogil:
    """C = A B, or C += where `accumulate`, with B (K, N) and C (M, N) in strips of PANEL columns, which lie b_strip and
    c_strip values apart: those of matrices row by row, or panels.

    A (M, K) is read one value at a time, so it may have any strides: A[i, k] is A[i a_row + (k // PANEL) a_block +
    (k % PANEL) a_col], and for a plain matrix a_block is PANEL a_col.  The sum over k goes in order, from C on.
    """
    cdef Py_ssize_t pair, s, k, k_tile
    for k_tile in range(tiles(K, K_BLOCK)):
        k = k_tile * K_BLOCK
        for pair in range(tiles(strips, FL_STRIPS)):
            s = pair * FL_STRIPS
            fl_tiles(M, PANEL * min(strips - s, FL_STRIPS), min(K - k, K_BLOCK), A + (k // PANEL) * a_block, a_row,
                     a_col, a_block, B + s * b_strip + k * ldb, ldb, b_strip, C + s * c_strip, ldc, c_strip,
                     accumulate or k > 0)


cdef void matmul(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                 const real *A, Py_ssize_t a_row, Py_ssize_t a_col, Py_ssize_t a_block,
                 const real *B, Py_ssize_t ldb, real *C, Py_ssize_t ldc, bint accumulate) noexcept nogil:
    """C (M, N) = A (M, K) B (K, N), or C += where `accumulate`; C and B row by row, A as in matmul_strips.

    B is read PANEL columns at a time: its rows must be readable up to a multiple of that.
    """
    cdef Py_ssize_t whole = N // PANEL * PANEL, k, k_tile
    matmul_strips(M, N // PANEL, K, A, a_row, a_col, a_block, B, ldb, PANEL, C, ldc, PANEL, accumulate)
    if N == whole:
        return
    for k_tile in range(tiles(K, K_BLOCK)):
        k = k_tile * K_BLOCK
        edge_tiles(N - whole, M, min(K - k, K_BLOCK), A + (k // PANEL) * a_block, a_row, a_col, a_block,
                   B + k * ldb + whole, ldb, C + whole, ldc, accumulate or k > 0)


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
