# Stochastic gradient descent in one pass over memory, with or without momentum.
#
# Uses: declarations, simd.

# A value takes as long as so many floating-point operations of a matrix product, in which threads_for counts.
cdef enum:
    SGD_COST = 12

cdef struct SgdStep:
    double lr
    double momentum
    double gain             # 1 - dampening; 1 at the first step, when the velocity starts as the gradient
    bint nesterov
    double grad_scale
    double l2


cdef void sgd_update(real *grad, real *param, real *velocity, Py_ssize_t n, const SgdStep *step) noexcept nogil:
    """One step over n values; velocity may be NULL where momentum is 0."""
    cdef Py_ssize_t i
    cdef real g, u, lr = <real>step.lr, momentum = <real>step.momentum, gain = <real>step.gain, tiny = <real>TINY
    cdef real grad_scale = <real>step.grad_scale, l2 = <real>step.l2
    cdef bint nesterov = step.nesterov
    for i in range(n):
        g = grad[i] * grad_scale + l2 * param[i]
        if velocity != NULL:
            u = momentum * velocity[i] + gain * g
            u = <real>0.0 if -tiny < u < tiny else u
            velocity[i] = u
            g = g + momentum * u if nesterov else u
        param[i] -= lr * g


cdef void sgd_run(real *grad, real *param, real *velocity, Py_ssize_t n, const SgdStep *c) noexcept nogil:
    """sgd_update on several threads."""
    cdef int threads = threads_for(SGD_COST * n), i
    cdef Py_ssize_t first, last
    if threads == 1:
        sgd_update(grad, param, velocity, n, c)
        return
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        first, last = share(n, i, threads, PANEL), share(n, i + 1, threads, PANEL)
        sgd_update(grad + first, param + first, velocity + first if velocity != NULL else NULL, last - first, c)


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


cdef class SGD(Optimizer):
    """SGD; each array's state is its velocity, or none without momentum."""
    cdef double momentum, dampening
    cdef bint nesterov
    cdef SgdStep scalars        # of the step at hand

    def __init__(self, list params, list states, list decays, list grads, double momentum, double dampening,
                 bint nesterov):
        Optimizer.__init__(self, kernels, params, states, decays, grads)
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov

    cdef bint prepare(self, double lr, double grad_scale, double largest) noexcept nogil:
        cdef SgdStep *c = &self.scalars
        c[0] = sgd_scalars(lr, self.momentum, self.dampening, self.nesterov, self.taken, grad_scale, self.decay)
        cdef bint apart = c.l2 == 0.0       # what is added to a parameter does not depend on it
        cdef double g = largest if apart else largest + c.l2 * self.largest_param(), u = g, inner, move
        if self.momentum > 0.0:
            u = self.momentum * self.moment + fabs(c.gain) * g
            self.moment = u
        inner = g + self.momentum * u if self.nesterov else u
        move = lr * inner
        self.param += move
        return (g < LARGE and u < LARGE and inner < LARGE and lr < LARGE and move < LARGE
                and (apart or self.param < LARGE))

    cdef void apply(self, Segment *s, double lr) noexcept nogil:
        self.scalars.l2 = s.decay
        sgd_run(<real *>s.grad, <real *>s.param, <real *>s.state[0], s.n, &self.scalars)
