# RMSNorm without a learned scale: y = x s, s = 1 / sqrt(mean(x^2) + eps), the mean over the features of a token.
#
# Uses: declarations, simd, layer.

cdef double RMSNORM_EPS = 1e-5


cdef void rmsnorm_forward(const real *x, Py_ssize_t D, real *y, real *scale) noexcept nogil:
    """y (D, PANEL) and scale (PANEL,) of x (D, PANEL); y may be x."""
    cdef vec a = v_set(0.0), b = a, s, x0, x1
    cdef Py_ssize_t d = 0, t
    while d + 2 <= D:                   # two sums, since each FMA of a single one would wait for the one before
        x0 = v_load(x + PANEL * d)
        x1 = v_load(x + PANEL * (d + 1))
        a = v_fma(x0, x0, a)
        b = v_fma(x1, x1, b)
        d += 2
    if d < D:
        x0 = v_load(x + PANEL * d)
        a = v_fma(x0, x0, a)
    v_store(scale, v_add(a, b))
    for t in range(PANEL):
        scale[t] = 1.0 / sqrt(scale[t] / <double>D + RMSNORM_EPS)
    s = v_load(scale)
    for d in range(D):
        v_store(y + PANEL * d, v_mul(v_load(x + PANEL * d), s))


cdef void rmsnorm_backward(const real *dy, const real *y, const real *scale, Py_ssize_t D, const real *base,
                           real *dx) noexcept nogil:
    """dx (D, PANEL) = base + s (dy - y mean(dy y)), without base where it is NULL; dx may be dy."""
    cdef vec a = v_set(0.0), b = a, s = v_load(scale), mean, g
    cdef Py_ssize_t d = 0
    while d + 2 <= D:
        a = v_fma(v_load(dy + PANEL * d), v_load(y + PANEL * d), a)
        b = v_fma(v_load(dy + PANEL * (d + 1)), v_load(y + PANEL * (d + 1)), b)
        d += 2
    if d < D:
        a = v_fma(v_load(dy + PANEL * d), v_load(y + PANEL * d), a)
    mean = v_mul(v_add(a, b), v_set(1.0 / <double>D))
    for d in range(D):
        g = v_sub(v_load(dy + PANEL * d), v_mul(v_load(y + PANEL * d), mean))
        g = v_mul(g, s) if base == NULL else v_fma(g, s, v_load(base + PANEL * d))
        v_store(dx + PANEL * d, g)


cdef class RMSNorm(Layer):
    cdef real *scale            # (P, PANEL)
    cdef real *kept             # (P, width, PANEL) y, or a copy of it where another layer overwrites y's panels

    def __init__(self, Value x not None):
        self.x, self.y, self.adds_sum = x, Value(x.width), True

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        Layer.lay_out(self, arena, N)
        self.scale = take_values(arena, N, 1)
        self.kept = take_values(arena, N, self.y.width) if self.y.overwritten else self.y.panels

    cdef void forward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        cdef Py_ssize_t D = self.y.width, p, t
        for p in range(first, first + n):
            t = PANEL * p
            rmsnorm_forward(self.x.panels + t * D, D, self.kept + t * D, self.scale + t)
            if self.kept != self.y.panels:
                memcpy(self.y.panels + t * D, self.kept + t * D, PANEL * D * sizeof(real))

    cdef void backward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        cdef Py_ssize_t D = self.y.width, p, t
        cdef const real *base = NULL
        for p in range(first, first + n):
            t = PANEL * p
            if self.x.sum is not None:
                base = self.x.sum.grad + t * D
            rmsnorm_backward(self.y.grad + t * D, self.kept + t * D, self.scale + t, D, base, self.x.grad + t * D)

    cdef void generate(self, const Tokens *b) noexcept nogil:
        cdef real[PANEL] scale
        rmsnorm_forward(self.x.position, self.x.width, self.y.position, scale)
