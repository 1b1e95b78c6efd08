# The matrix product that every model is made of.
#
# No BLAS: on one Zen 4 core, whose multipliers end at 59 GFLOP/s, a product of (512, 512) takes the tiles 4.9 ms (54.6
# GFLOP/s) with AVX-512 where NumPy's OpenBLAS takes 5.4, and 5.5 ms with AVX2, as OpenBLAS does; at (64, 64, 256) they
# are alike, and below that a call of BLAS costs more than the product.  With a large vocabulary and AVX2 BLAS would win
# a tenth, and lose the bits that depend on neither threads nor library.

# A tile's columns of B, K rows of 64 bytes, should stay in the L1 cache while A goes past: 256 rows are 16 KiB.
cdef enum:
    K_BLOCK = 256


cdef void edge_tiles(Py_ssize_t columns, Py_ssize_t M, Py_ssize_t K, const double *A, Py_ssize_t a_row,
                     Py_ssize_t a_col, Py_ssize_t a_block, const double *B, Py_ssize_t ldb, double *C,
                     Py_ssize_t ldc, bint accumulate) noexcept nogil:
    """The last columns of C, fewer than eight: on a copy, so as not to write past them."""
    cdef double edge[8 * 8]
    cdef Py_ssize_t i, r
    for i in range(0, M, 8):
        memset(edge, 0, sizeof(edge))
        for r in range(min(M - i, 8)):
            memcpy(edge + 8 * r, C + (i + r) * ldc, columns * 8)
        fl_tiles(min(M - i, 8), 8, K, A + i * a_row, a_row, a_col, a_block, B, ldb, 0, edge, 8, accumulate)
        for r in range(min(M - i, 8)):
            memcpy(C + (i + r) * ldc, edge + 8 * r, columns * 8)


cdef void matmul(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                 const double *A, Py_ssize_t a_row, Py_ssize_t a_col, Py_ssize_t a_block,
                 const double *B, Py_ssize_t ldb, double *C, Py_ssize_t ldc, bint accumulate) noexcept nogil:
    """C (M, N) = A (M, K) B (K, N), or C += where `accumulate`; C and B row by row.

    A is read one value at a time, so it may lie in any order: A[i, k] stands at
    i a_row + (k // 8) a_block + (k % 8) a_col (for a plain matrix a_block is 8 a_col).  B is read eight columns at a
    time: its rows must be readable up to a multiple of eight.  The sum over k goes in order, from C on.
    """
    cdef Py_ssize_t j, k, k_tile, depth
    cdef const double *a
    for k_tile in range(tiles(K, K_BLOCK)):
        k = k_tile * K_BLOCK
        depth = min(K - k, K_BLOCK)
        a = A + (k >> 3) * a_block
        for j in range(0, N - 7, 8):
            fl_tiles(M, 8, depth, a, a_row, a_col, a_block, B + k * ldb + j, ldb, 0, C + j, ldc, accumulate or k > 0)
        if N & 7:
            j = N & ~<Py_ssize_t>7
            edge_tiles(N - j, M, depth, a, a_row, a_col, a_block, B + k * ldb + j, ldb, C + j, ldc, accumulate or k > 0)


cdef void transpose_rows(const double *x, Py_ssize_t ldx, Py_ssize_t tokens, Py_ssize_t D,
                         double *panel) noexcept nogil:
    """panel (D, 8) = x (tokens, D) turned round, tokens <= 8; the lanes past the last token are zeroed."""
    cdef Py_ssize_t d = 0, t
    if tokens == 8:
        while d + 8 <= D:
            fl_transpose(x + d, ldx, panel + 8 * d, 8)
            d += 8
    while d < D:
        for t in range(8):
            panel[8 * d + t] = x[t * ldx + d] if t < tokens else 0.0
        d += 1


cdef void transpose_panel(const double *panel, Py_ssize_t tokens, Py_ssize_t D, double *x,
                          Py_ssize_t ldx) noexcept nogil:
    """x (tokens, D) = panel (D, 8) turned round, tokens <= 8."""
    cdef Py_ssize_t d = 0, t
    if tokens == 8:
        while d + 8 <= D:
            fl_transpose(panel + 8 * d, 8, x + d, ldx)
            d += 8
    while d < D:
        for t in range(tokens):
            x[t * ldx + d] = panel[8 * d + t]
        d += 1


cdef void transpose_strips(const double *panel, Py_ssize_t D, double *strips, Py_ssize_t stride) noexcept nogil:
    """The panel's tokens in strips of eight features, (D / 8, 8 tokens, 8), each `stride` from the one before."""
    cdef Py_ssize_t d = 0, i, t
    while d + 8 <= D:
        fl_transpose(panel + 8 * d, 8, strips + (d >> 3) * stride, 8)
        d += 8
    if d < D:
        strips += (d >> 3) * stride
        for t in range(8):
            for i in range(8):
                strips[8 * t + i] = panel[8 * (d + i) + t] if d + i < D else 0.0


cdef void copy_rows(const double *A, Py_ssize_t rows, Py_ssize_t D, double *out, Py_ssize_t ld) noexcept nogil:
    """out (rows, ld) = A (rows, D), the columns past D zeroed."""
    cdef Py_ssize_t i
    for i in range(rows):
        memcpy(out + i * ld, A + i * D, D * 8)
        memset(out + i * ld + D, 0, (ld - D) * 8)
