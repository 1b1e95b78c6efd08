# The kernels one by one, as core.pyx calls them (kernels.pxi), for this instruction set.
#
# Uses: declarations, simd, logits, cross_entropy, embedding, norm, adam.

cdef class EngineKernels(Kernels):
    cdef void scale(self, real *x, Py_ssize_t n, double factor) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(n):
            x[i] *= factor

    cdef double norm2(self, const real *x, Py_ssize_t n, double *partial) noexcept nogil:
        return norm2(x, n, partial)

    cdef Py_ssize_t clip_values(self, real *x, Py_ssize_t n, double limit) noexcept nogil:
        return clip_values(x, n, limit)

    cdef void embed(self, const int64_t *inputs, const int64_t *positions, Py_ssize_t N, Py_ssize_t D,
                    const real *wte, const real *wpe, real *x) noexcept nogil:
        embed(inputs, positions, N, D, wte, wpe, x, D)

    cdef void scatter(self, const int64_t *ids, Py_ssize_t N, Py_ssize_t D, const real *dx,
                      real *dtable) noexcept nogil:
        scatter(ids, N, D, dx, D, dtable)

    cdef int logits(self, Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const real *x, const real *lm_head,
                    real *logits) except -1:
        cdef Buffer work = Buffer()
        cdef real *panel = NULL
        cdef real *tile = NULL
        while work.lays_out():
            panel = take_values(&work.arena, PANEL, D)
            tile = take_values(&work.arena, PANEL, V_TILE)
        with nogil:
            logits_rows(N, D, V, x, lm_head, logits, panel, tile)
        return 0

    cdef int logits_grad(self, Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const real *x, const real *lm_head,
                         const real *dlogits, real *dx, real *dlm_head) except -1:
        cdef Py_ssize_t ld = padded(D), panels = round_up(N, PANEL)
        cdef Buffer work = Buffer()
        cdef real *x_rows = NULL
        cdef real *weight = NULL
        cdef real *tile = NULL
        while work.lays_out():
            x_rows = take_values(&work.arena, panels, ld)
            weight = take_values(&work.arena, V_TILE, ld)
            tile = take_values(&work.arena, panels, V_TILE)
        with nogil:
            logits_rows_grad(N, D, V, x, lm_head, dlogits, dx, dlm_head, x_rows, weight, tile)
        return 0

    cdef int cross_entropy(self, Py_ssize_t N, Py_ssize_t V, const real *logits, const int64_t *targets,
                           double *losses, real *dlogits) except -1:
        cdef Buffer work = Buffer()
        cdef real *panel = <real *>work.array(times(PANEL, V), sizeof(real))
        with nogil:
            cross_entropy_rows(N, V, logits, targets, losses, dlogits, panel)
        return 0

    cdef void adam(self, real *grad, real *param, real *m, real *v, Py_ssize_t n, double lr, double beta1,
                   double beta2, double eps, int64_t t, double weight_decay, bint decoupled, double grad_scale,
                   bint zero_grad) noexcept nogil:
        cdef AdamStep c = adam_scalars(lr, beta1, beta2, eps, t, grad_scale, weight_decay, decoupled)
        adam_run(grad, param, m, v, n, &c, zero_grad)


kernels = EngineKernels()


cdef int name_all(dict names) except -1:
    """Give this module the names of the kernels and all public names of core.pyx."""
    from fastloop._core import core

    for name, x in vars(core).items():
        if not name.startswith("_"):
            names.setdefault(name, x)
    for name in vars(core.Kernels):
        if not name.startswith("_"):
            names[name] = getattr(kernels, name)
    return 0


name_all(globals())
