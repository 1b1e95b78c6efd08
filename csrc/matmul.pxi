# The matrix product that every model is made of.

# A tile's columns of B, K rows of 64 bytes, should stay in the L1 cache while A goes past: 256 rows are 16 KiB.
cdef enum:
    K_BLOCK = 256


cdef void matmul(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                 const double *A, Py_ssize_t a_row, Py_ssize_t a_col, Py_ssize_t a_block,
                 const double *B, Py_ssize_t ldb, double *C, Py_ssize_t ldc, bint accumulate) noexcept nogil:
    """C (M, N) = A (M, K) B (K, N), or C += where `accumulate`; C and B row by row.

    A is read one value at a time, so it may lie in any order: A[i, k] stands at
    i a_row + (k // 8) a_block + (k % 8) a_col (for a plain matrix a_block is 8 a_col).  B is read eight columns at a
    time: its rows must be readable up to a multiple of eight.  The sum over k goes in order, from C on.
    """
    cdef Py_ssize_t i, j, k, r, rows, depth, columns, i_tile, k_tile
    cdef double edge[8 * 8]
    cdef bint add
    for k_tile in range(tiles(K, K_BLOCK)):
        k = k_tile * K_BLOCK
        depth = min(K - k, K_BLOCK)
        add = accumulate or k > 0
        for j in range(0, N, 8):
            columns = min(N - j, 8)
            for i_tile in range(tiles(M, FL_ROWS)):
                i = i_tile * FL_ROWS
                rows = min(M - i, FL_ROWS)
                if columns == 8:
                    fl_tile(rows, depth, A + i * a_row + (k >> 3) * a_block, a_row, a_col, a_block,
                            B + k * ldb + j, ldb, C + i * ldc + j, ldc, add)
                    continue
                # The last columns of a row that is no multiple of eight: on a copy, so as not to write past them.
                memset(edge, 0, sizeof(edge))
                if add:
                    for r in range(rows):
                        memcpy(edge + 8 * r, C + (i + r) * ldc + j, columns * 8)
                fl_tile(rows, depth, A + i * a_row + (k >> 3) * a_block, a_row, a_col, a_block,
                        B + k * ldb + j, ldb, edge, 8, add)
                for r in range(rows):
                    memcpy(C + (i + r) * ldc + j, edge + 8 * r, columns * 8)


cdef void transpose_rows(const double *x, Py_ssize_t ldx, Py_ssize_t tokens, Py_ssize_t D,
                         double *panel) noexcept nogil:
    """panel (D, 8) = x (tokens, D) turned round, tokens <= 8; the lanes past the last token are zeroed."""
    cdef Py_ssize_t d, t
    cdef double[8] line
    if tokens == 8:
        # Eight streams read side by side and each line written at once; through `line`, since x and panel might overlap
        # for all that the compiler knows.
        for d in range(D):
            for t in range(8):
                line[t] = x[t * ldx + d]
            v8_store(panel + 8 * d, v8_load(line))
        return
    for t in range(tokens):
        for d in range(D):
            panel[8 * d + t] = x[t * ldx + d]
    for t in range(tokens, 8):
        for d in range(D):
            panel[8 * d + t] = 0.0


cdef void transpose_panel(const double *panel, Py_ssize_t tokens, Py_ssize_t D, double *x,
                          Py_ssize_t ldx) noexcept nogil:
    """x (tokens, D) = panel (D, 8) turned round, tokens <= 8."""
    cdef Py_ssize_t d, t
    for t in range(tokens):
        for d in range(D):
            x[t * ldx + d] = panel[8 * d + t]


cdef inline Py_ssize_t padded(Py_ssize_t D) noexcept nogil:
    """The stride of rows of D values: whole v8s, and an odd number of cache lines.

    With an even number a column of a tall matrix falls into few sets of the L1 cache and evicts itself.
    """
    return ((D + 7) >> 3 | 1) << 3


cdef void copy_rows(const double *A, Py_ssize_t rows, Py_ssize_t D, double *out, Py_ssize_t ld) noexcept nogil:
    """out (rows, ld) = A (rows, D), the columns past D zeroed."""
    cdef Py_ssize_t i
    for i in range(rows):
        memcpy(out + i * ld, A + i * D, D * 8)
        memset(out + i * ld + D, 0, (ld - D) * 8)
