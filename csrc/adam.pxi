# Adam in one pass over memory: gradient, moments, bias correction, update, and zeroing the gradient.

# A moment below this is set to zero: decayed further it would become subnormal, and arithmetic on subnormal
# numbers takes a hundred cycles (a character that no longer occurs would slow every later step).
cdef double TINY = 1e-290


cdef struct AdamStep:
    double step_size        # lr / (1 - beta1^t)
    double v_scale          # 1 / sqrt(1 - beta2^t)
    double beta1
    double beta2
    double eps
    double grad_scale       # clipping and accumulation; 1.0 changes no bit
    double l2               # added to the gradient: l2 param (Adam's weight_decay)
    double keep             # 1 - lr weight_decay (AdamW's decoupled decay)


cdef AdamStep adam_scalars(double lr, double beta1, double beta2, double eps, int64_t t, double grad_scale,
                           double weight_decay, bint decoupled) noexcept nogil:
    cdef AdamStep c
    # 1 - beta^t as -expm1(t log beta): with beta near 1 the difference would lose three digits in the first steps.
    c.step_size = lr / -expm1(<double>t * log(beta1))
    c.v_scale = 1.0 / sqrt(-expm1(<double>t * log(beta2)))
    c.beta1 = beta1
    c.beta2 = beta2
    c.eps = eps
    c.grad_scale = grad_scale
    c.l2 = 0.0 if decoupled else weight_decay
    c.keep = 1.0 - lr * weight_decay if decoupled else 1.0
    return c


cdef void adam_update(double *grad, double *param, double *m, double *v, Py_ssize_t n, const AdamStep *step,
                      bint zero_grad) noexcept nogil:
    """One Adam step over n values.

    One division and one square root a value, with the bias corrections hoisted into two scalars: these
    two instructions bound the loop in cache, memory bounds it beyond (56 bytes a value with zero_grad, 48 else).
    """
    cdef Py_ssize_t i
    cdef double g, mi, vi
    cdef AdamStep c = step[0]
    for i in range(n):
        g = grad[i] * c.grad_scale + c.l2 * param[i]
        mi = c.beta1 * m[i] + (1.0 - c.beta1) * g
        vi = c.beta2 * v[i] + (1.0 - c.beta2) * (g * g)
        mi = 0.0 if fabs(mi) < TINY else mi      # this way round NaN stays NaN
        vi = 0.0 if vi < TINY else vi
        m[i] = mi
        v[i] = vi
        param[i] = param[i] * c.keep - c.step_size * mi / (sqrt(vi) * c.v_scale + c.eps)
        if zero_grad:
            grad[i] = 0.0


cdef void adam_run(double *grad, double *param, double *m, double *v, Py_ssize_t n, const AdamStep *c,
                   bint zero_grad) noexcept nogil:
    """adam_update, cut over the threads; each value is its own, so the cut changes no bit."""
    cdef int threads = threads_for(n * 8), i
    cdef Py_ssize_t first, last
    if threads == 1:
        adam_update(grad, param, m, v, n, c, zero_grad)
        return
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        first = round8(n * i // threads)
        last = n if i == threads - 1 else round8(n * (i + 1) // threads)
        adam_update(grad + first, param + first, m + first, v + first, last - first, c, zero_grad)


def adam_step(const double[::1] grad not None, double[::1] param not None, double[::1] m not None,
              double[::1] v not None, double lr, double beta1, double beta2, double eps, int64_t t, double weight_decay,
              bint decoupled, double grad_scale, bint zero_grad):
    # grad is written to only if zero_grad; const lets a read-only gradient through otherwise.
    cdef AdamStep c = adam_scalars(lr, beta1, beta2, eps, t, grad_scale, weight_decay, decoupled)
    if param.shape[0]:
        with nogil:
            adam_run(<double *>&grad[0], &param[0], &m[0], &v[0], param.shape[0], &c, zero_grad)


cdef class Adam(Optimizer):
    """Adam or AdamW over a model's buffers, with the moments m and v."""
    cdef double[::1] m
    cdef double[::1] v
    cdef double beta1, beta2, eps
    cdef bint decoupled

    def __init__(self, grad, param, bounds, decay, double[::1] m not None, double[::1] v not None,
                 double beta1, double beta2, double eps, bint decoupled):
        Optimizer.__init__(self, grad, param, bounds, decay)
        self.same_length("m", m)
        self.same_length("v", v)
        self.m, self.v = m, v
        self.beta1, self.beta2, self.eps, self.decoupled = beta1, beta2, eps, decoupled

    cdef void update(self, double lr, double grad_scale, bint zero_grad) noexcept nogil:
        cdef Py_ssize_t s, i
        cdef AdamStep c
        self.t += 1
        for s in range(self.decay.shape[0]):
            i = self.bounds[s]
            c = adam_scalars(lr, self.beta1, self.beta2, self.eps, self.t, grad_scale, self.decay[s], self.decoupled)
            adam_run(&self.grad[i], &self.param[i], &self.m[i], &self.v[i], self.bounds[s + 1] - i, &c, zero_grad)
