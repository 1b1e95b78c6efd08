# The global gradient norm, sqrt(sum g^2), scaled so that it overflows only where the norm itself does; and clipping by
# value.  Clipping by norm is a factor, which in a fit the optimiser applies as it reads the gradient (step/loop.pxi).
#
# Uses: declarations, simd.

# A value takes as long as so many floating-point operations of a matrix product, in which threads_for counts.
cdef enum:
    NORM_COST = 8


cdef double sum_squares_blocks(const real *x, Py_ssize_t n, double scale, double *partial) noexcept nogil:
    cdef Py_ssize_t blocks = norm_blocks(n), i
    cdef int threads = threads_for(NORM_COST * n)
    cdef double total = 0.0
    if threads == 1:
        for i in range(blocks):
            total += fl_sum_squares(x + i * NORM_BLOCK, min(NORM_BLOCK, n - i * NORM_BLOCK), scale)
        return total
    for i in prange(blocks, num_threads=threads, schedule="static"):
        partial[i] = fl_sum_squares(x + i * NORM_BLOCK, min(NORM_BLOCK, n - i * NORM_BLOCK), scale)
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


cdef bint all_finite(const real *x, Py_ssize_t n) noexcept nogil:
    """Whether n values are finite: 0 times each is 0 then, and NaN where it is not."""
    cdef vec zero = v_set(0.0), a = zero, b = zero, c = zero, d = zero
    cdef real[PANEL] sums
    cdef real total = 0.0
    cdef Py_ssize_t i = 0
    while i + 4 * PANEL <= n:
        a = v_fma(v_load(x + i), zero, a)
        b = v_fma(v_load(x + i + PANEL), zero, b)
        c = v_fma(v_load(x + i + 2 * PANEL), zero, c)
        d = v_fma(v_load(x + i + 3 * PANEL), zero, d)
        i += 4 * PANEL
    while i < n:
        total += x[i] * <real>0.0
        i += 1
    v_store(sums, v_add(v_add(a, b), v_add(c, d)))
    for i in range(PANEL):
        total += sums[i]
    return total == 0.0


cdef Py_ssize_t clip_values(real *x, Py_ssize_t n, double limit) noexcept nogil:
    """Bring every x into [-limit, limit]; return how many were outside.  NaN stays NaN."""
    cdef Py_ssize_t i, outside = 0
    cdef real most = fl_at_most(limit)
    for i in range(n):
        outside += fabs(x[i]) > most
        x[i] = most if x[i] > most else (-most if x[i] < -most else x[i])
    return outside


cdef double largest_of(const real *x, const real *before, Py_ssize_t n) noexcept nogil:
    """The largest size of n values, infinite where one is not finite that was so before (NULL: all were)."""
    cdef double largest = 0.0
    cdef Py_ssize_t i
    for i in range(n):
        if isfinite(x[i]):
            largest = max(largest, fabs(x[i]))
        elif before == NULL or isfinite(before[i]):
            return INFINITY
    return largest
