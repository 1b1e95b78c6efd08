# Stochastic gradient descent in one pass over memory, with or without momentum.

cdef struct SgdStep:
    double lr
    double momentum
    double gain             # 1 - dampening; 1 at the first step, when the velocity starts as the gradient
    bint nesterov
    double grad_scale
    double l2


cdef void sgd_update(double *grad, double *param, double *velocity, Py_ssize_t n, const SgdStep *step,
                     bint zero_grad) noexcept nogil:
    """One step over n values; velocity may be NULL where momentum is 0."""
    cdef Py_ssize_t i
    cdef double g, u
    cdef SgdStep c = step[0]
    for i in range(n):
        g = grad[i] * c.grad_scale + c.l2 * param[i]
        if velocity != NULL:
            u = c.momentum * velocity[i] + c.gain * g
            u = 0.0 if fabs(u) < TINY else u
            velocity[i] = u
            g = g + c.momentum * u if c.nesterov else u
        param[i] -= c.lr * g
        if zero_grad:
            grad[i] = 0.0


cdef void sgd_run(double *grad, double *param, double *velocity, Py_ssize_t n, const SgdStep *c,
                  bint zero_grad) noexcept nogil:
    """sgd_update, cut over the threads."""
    cdef int threads = threads_for(n * 4), i
    cdef Py_ssize_t first, last
    if threads == 1:
        sgd_update(grad, param, velocity, n, c, zero_grad)
        return
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        first = round8(n * i // threads)
        last = n if i == threads - 1 else round8(n * (i + 1) // threads)
        sgd_update(grad + first, param + first, velocity + first if velocity != NULL else NULL, last - first, c, zero_grad)


cdef SgdStep sgd_scalars(double lr, double momentum, double dampening, bint nesterov, int64_t t, double grad_scale,
                         double weight_decay) noexcept nogil:
    cdef SgdStep c
    c.lr = lr
    c.momentum = momentum
    c.gain = 1.0 if t == 1 else 1.0 - dampening
    c.nesterov = nesterov
    c.grad_scale = grad_scale
    c.l2 = weight_decay
    return c


def sgd_step(double[::1] grad not None, double[::1] param not None, double[::1] velocity,
             double lr, double momentum, double dampening, bint nesterov, int64_t t, double weight_decay,
             double grad_scale, bint zero_grad):
    cdef SgdStep c = sgd_scalars(lr, momentum, dampening, nesterov, t, grad_scale, weight_decay)
    cdef double *u = NULL
    if param.shape[0]:
        if velocity is not None:
            u = &velocity[0]
        with nogil:
            sgd_run(&grad[0], &param[0], u, param.shape[0], &c, zero_grad)


cdef class SGD(Optimizer):
    """SGD over a model's buffers; velocity is None where momentum is 0."""
    cdef double[::1] velocity
    cdef double *u
    cdef double momentum, dampening
    cdef bint nesterov

    def __init__(self, grad, param, bounds, decay, double[::1] velocity, double momentum, double dampening,
                 bint nesterov):
        Optimizer.__init__(self, grad, param, bounds, decay)
        if velocity is not None:
            self.same_length("velocity", velocity)
            self.u = &velocity[0]
        self.velocity = velocity
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov

    cdef void update(self, double lr, double grad_scale, bint zero_grad) noexcept nogil:
        cdef Py_ssize_t s, i
        cdef SgdStep c
        self.t += 1
        for s in range(self.decay.shape[0]):
            i = self.bounds[s]
            c = sgd_scalars(lr, self.momentum, self.dampening, self.nesterov, self.t, grad_scale, self.decay[s])
            sgd_run(&self.grad[i], &self.param[i], self.u + i if self.u != NULL else NULL, self.bounds[s + 1] - i, &c,
                    zero_grad)
