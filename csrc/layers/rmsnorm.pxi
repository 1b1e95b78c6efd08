# What a transformer does to each feature of a token by itself, on panels.
#
# RMSNorm without a learned scale: y = x s, s = 1 / sqrt(mean(x^2) + eps).

cdef double RMSNORM_EPS = 1e-5


cdef void rmsnorm_forward(const double *x, Py_ssize_t D, double *y, double *scale) noexcept nogil:
    """y (D, 8) and scale (8,) of x (D, 8); y may be x."""
    cdef v8 a = v8_set(0.0), b = a, s, x0, x1
    cdef Py_ssize_t d = 0, t
    while d + 2 <= D:                   # two running sums: one would wait for the latency of FMA
        x0 = v8_load(x + 8 * d)
        x1 = v8_load(x + 8 * d + 8)
        a = v8_fma(x0, x0, a)
        b = v8_fma(x1, x1, b)
        d += 2
    if d < D:
        x0 = v8_load(x + 8 * d)
        a = v8_fma(x0, x0, a)
    v8_store(scale, v8_add(a, b))
    for t in range(8):
        scale[t] = 1.0 / sqrt(scale[t] / <double>D + RMSNORM_EPS)
    s = v8_load(scale)
    for d in range(D):
        v8_store(y + 8 * d, v8_mul(v8_load(x + 8 * d), s))


cdef void rmsnorm_backward(const double *dy, const double *y, const double *scale, Py_ssize_t D, const double *base,
                           double *dx) noexcept nogil:
    """dx (D, 8) = base + s (dy - y mean(dy y)), without base where it is NULL; dx may be dy."""
    cdef v8 a = v8_set(0.0), b = a, s = v8_load(scale), mean, g
    cdef Py_ssize_t d = 0
    while d + 2 <= D:
        a = v8_fma(v8_load(dy + 8 * d), v8_load(y + 8 * d), a)
        b = v8_fma(v8_load(dy + 8 * d + 8), v8_load(y + 8 * d + 8), b)
        d += 2
    if d < D:
        a = v8_fma(v8_load(dy + 8 * d), v8_load(y + 8 * d), a)
    mean = v8_mul(v8_add(a, b), v8_set(1.0 / <double>D))
    for d in range(D):
        g = v8_sub(v8_load(dy + 8 * d), v8_mul(v8_load(y + 8 * d), mean))
        g = v8_mul(g, s) if base == NULL else v8_fma(g, s, v8_load(base + 8 * d))
        v8_store(dx + 8 * d, g)


cdef void panel_dot(const double *x, const double *y, Py_ssize_t D, double *sums) noexcept nogil:
    """sums (8,) of x y over the features of two panels (D, 8)."""
    cdef v8 a = v8_set(0.0)
    cdef Py_ssize_t d
    for d in range(D):
        a = v8_fma(v8_load(x + 8 * d), v8_load(y + 8 * d), a)
    v8_store(sums, a)
