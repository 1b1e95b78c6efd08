# The kernels one by one, as core.pyx calls them (kernels.pxi), for this instruction set.
#
# Uses: declarations, simd, logits, cross_entropy, embedding, norm, adam, sgd.

cdef class EngineKernels(Kernels):
    def __cinit__(self):
        self.itemsize = sizeof(real)
        self.squarable, self.moderate, self.large = SQUARABLE, MODERATE, LARGE

    cdef void scale(self, void *x, Py_ssize_t n, double factor) noexcept nogil:
        cdef Py_ssize_t i
        cdef real *x_ = <real *>x
        cdef real factor_ = <real>factor        # as Adam reads it
        for i in range(n):
            x_[i] *= factor_

    cdef double norm2(self, const void *x, Py_ssize_t n, double *partial) noexcept nogil:
        return norm2(<const real *>x, n, partial)

    cdef double largest(self, const void *x, const void *before, Py_ssize_t n) noexcept nogil:
        return largest_of(<const real *>x, <const real *>before, n)

    cdef Py_ssize_t clip_values(self, void *x, Py_ssize_t n, double limit) noexcept nogil:
        return clip_values(<real *>x, n, limit)

    cdef void embed(self, const int64_t *inputs, const int64_t *positions, Py_ssize_t N, Py_ssize_t D,
                    const void *wte, const void *wpe, void *x) noexcept nogil:
        embed(inputs, positions, N, D, <const real *>wte, <const real *>wpe, <real *>x, D)

    cdef void scatter(self, const int64_t *ids, Py_ssize_t N, Py_ssize_t D, const void *dx,
                      void *dtable) noexcept nogil:
        scatter(ids, N, D, <const real *>dx, D, <real *>dtable)

    cdef int logits(self, Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const void *x, const void *lm_head,
                    void *logits) except -1:
        cdef Buffer work = Buffer()
        cdef real *panel = NULL
        cdef real *tile = NULL
        while work.lays_out():
            panel = take_values(&work.arena, PANEL, D)
            tile = take_values(&work.arena, PANEL, V_TILE)
        with nogil:
            logits_rows(N, D, V, <const real *>x, <const real *>lm_head, <real *>logits, panel, tile)
        return 0

    cdef int logits_grad(self, Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const void *x, const void *lm_head,
                         const void *dlogits, void *dx, void *dlm_head) except -1:
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
            logits_rows_grad(N, D, V, <const real *>x, <const real *>lm_head, <const real *>dlogits, <real *>dx,
                             <real *>dlm_head, x_rows, weight, tile)
        return 0

    cdef int cross_entropy(self, Py_ssize_t N, Py_ssize_t V, const void *logits, const int64_t *targets,
                           double *losses, void *dlogits) except -1:
        cdef Buffer work = Buffer()
        cdef real *panel = <real *>work.array(times(PANEL, V), sizeof(real))
        with nogil:
            cross_entropy_rows(N, V, <const real *>logits, targets, losses, <real *>dlogits, panel)
        return 0

    cdef void adam(self, void *grad, void *param, void *m, void *v, Py_ssize_t n, double lr, double beta1,
                   double beta2, double eps, int64_t t, double weight_decay, bint decoupled, double grad_scale,
                   bint zero_grad) noexcept nogil:
        cdef AdamStep c = adam_scalars(lr, beta1, beta2, eps, t, grad_scale, weight_decay, decoupled)
        adam_run(<real *>grad, <real *>param, <real *>m, <real *>v, n, &c, zero_grad)

    cdef bint finite(self, const void *x, Py_ssize_t n) noexcept nogil:
        return all_finite(<const real *>x, n)

    cdef void update_part(self, const Part *part, Py_ssize_t first, Py_ssize_t last, bint adam) noexcept nogil:
        cdef real *grad = <real *>part.grad + first
        cdef real *param = <real *>part.param + first
        cdef real *one = <real *>part.state[0] + first if part.state[0] != NULL else NULL
        cdef AdamStep a
        cdef SgdStep s
        if adam:
            a = adam_scalars(part.lr, part.hyper[0], part.hyper[1], part.hyper[2], part.t, part.scale, part.decay,
                             part.decoupled)
            adam_update(grad, param, one, <real *>part.state[1] + first, last - first, &a, False)
        else:
            s = sgd_scalars(part.lr, part.hyper[0], part.hyper[1], part.hyper[2] != 0.0, part.t, part.scale, part.decay)
            sgd_update(grad, param, one, last - first, &s)


kernels = EngineKernels()


cdef int name_all(dict names) except -1:
    """Give this module `kernels`, the names of the kernels and all public names of core.pyx."""
    from fastloop._core import core

    names["kernels"] = kernels
    for name, x in vars(core).items():
        if not name.startswith("_"):
            names.setdefault(name, x)
    for name in vars(core.Kernels):
        if not name.startswith("_"):
            names[name] = getattr(kernels, name)
    return 0


name_all(globals())
