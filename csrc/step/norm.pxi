# The global gradient norm, sqrt(sum g^2), scaled so that it overflows only where the norm itself does; and clipping by
# value.  Clipping by norm is a factor, which in a fit the optimiser applies as it reads the gradient (step/loop.pxi).
#
# Uses: declarations, simd.

# A value takes as long as so many floating-point operations of a matrix product, in which threads_for counts.
cdef enum:
    NORM_COST = 8


cdef double sum_squares(const real *x, Py_ssize_t n, double scale) noexcept nogil:
    """sum (scale x)^2 over one block, in four vecs of sums: each FMA of a single one would wait for the one before."""
    cdef vec a = v_set(0.0), b = a, c = a, d = a, x0, x1, x2, x3
    cdef vec s = v_set(scale)
    cdef real[PANEL] lanes
    cdef double total = 0.0
    cdef Py_ssize_t i = 0
    while i + 4 * PANEL <= n:
        x0 = v_mul(v_load(x + i), s)
        x1 = v_mul(v_load(x + i + PANEL), s)
        x2 = v_mul(v_load(x + i + 2 * PANEL), s)
        x3 = v_mul(v_load(x + i + 3 * PANEL), s)
        a = v_fma(x0, x0, a)
        b = v_fma(x1, x1, b)
        c = v_fma(x2, x2, c)
        d = v_fma(x3, x3, d)
        i += 4 * PANEL
    v_store(lanes, v_add(v_add(a, b), v_add(c, d)))
    while i < n:
        total += (x[i] * scale) * (x[i] * scale)
        i += 1
    for i in range(PANEL):
        total += lanes[i]
    return total


cdef double sum_squares_blocks(const real *x, Py_ssize_t n, double scale, double *partial) noexcept nogil:
    cdef Py_ssize_t blocks = norm_blocks(n), i
    cdef int threads = threads_for(NORM_COST * n)
    cdef double total = 0.0
    if threads == 1:
        for i in range(blocks):
            total += sum_squares(x + i * NORM_BLOCK, min(NORM_BLOCK, n - i * NORM_BLOCK), scale)
        return total
    for i in prange(blocks, num_threads=threads, schedule="static"):
        partial[i] = sum_squares(x + i * NORM_BLOCK, min(NORM_BLOCK, n - i * NORM_BLOCK), scale)
    for i in range(blocks):
        total += partial[i]
    return total


cdef double norm2(const real *x, Py_ssize_t n, double *partial) noexcept nogil:
    """sqrt(sum x^2); partial: scratch for norm_blocks(n) sums.  Not finite only where an x or the norm is not."""
    cdef double total = sum_squares_blocks(x, n, 1.0, partial), scale
    if 1e-290 < total < INFINITY:
        return sqrt(total)
    # The squares overflowed or vanished (or all are 0): again, scaled by a power of two, which rounds nothing.
    scale = ldexp(1.0, 600 if total <= 1e-290 else -600)
    return sqrt(sum_squares_blocks(x, n, scale, partial)) / scale


cdef Py_ssize_t clip_values(real *x, Py_ssize_t n, double limit) noexcept nogil:
    """Bring every x into [-limit, limit]; return how many were outside.  NaN stays NaN."""
    cdef Py_ssize_t i, outside = 0
    for i in range(n):
        outside += fabs(x[i]) > limit
        x[i] = limit if x[i] > limit else (-limit if x[i] < -limit else x[i])
    return outside
