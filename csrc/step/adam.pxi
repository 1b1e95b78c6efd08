# Adam in one pass over memory: gradient, moments, bias correction, update, and zeroing the gradient.
#
# Uses: declarations, simd.

# A moment below TINY is set to zero: decayed further it would become subnormal, and arithmetic on subnormal numbers
# takes a hundred cycles (an id that no longer occurs would slow every later step).  Flushing takes a tenth of the pass
# in cache, so it is done every 16th step: from TINY to the subnormal numbers is a factor of 4e17 (in float32 850),
# which takes 16 steps or more for any beta above TINY_BETA.  With an eps so small that such a v would matter beside it
# (below 1e-125, in float32 3e-9) the limit is lower: without its v, what is left of m would be divided by eps alone.
cdef enum:
    FLUSH_EVERY = 16    # steps

# A value takes as long as so many floating-point operations of a matrix product, in which threads_for counts.
cdef enum:
    ADAM_COST = 48


cdef struct AdamStep:
    double step_size        # lr / (1 - beta1^t)
    double v_scale          # 1 / sqrt(1 - beta2^t)
    double beta1
    double beta2
    double eps
    double grad_scale       # clipping and accumulation; 1.0 changes no bit
    double l2               # added to the gradient: l2 param (Adam's weight_decay)
    double keep             # 1 - lr weight_decay (AdamW's decoupled decay)
    bint plain              # grad_scale and keep are 1 and l2 is 0, which change no bit
    bint flush              # whether moments below `tiny` become 0 in this step
    double tiny
    double tiny_grad        # float32: a smaller gradient's square would be subnormal, and is taken to be 0


cdef AdamStep adam_scalars(double lr, double beta1, double beta2, double eps, int64_t t, double grad_scale,
                           double weight_decay, bint decoupled) noexcept nogil:
    cdef AdamStep c
    # What a moment keeps and what it takes from the gradient add up to 1 in float32, too.
    beta1, beta2 = <double>(<real>beta1), <double>(<real>beta2)
    # 1 - beta^t as -expm1(t log beta): for beta near 1 the difference would lose three digits in the first steps.
    c.step_size = lr / -expm1(<double>t * log(beta1))
    c.v_scale = 1.0 / sqrt(-expm1(<double>t * log(beta2)))
    c.beta1 = beta1
    c.beta2 = beta2
    c.eps = eps
    c.grad_scale = grad_scale
    c.flush = t % FLUSH_EVERY == 0 or min(beta1, beta2) < TINY_BETA
    c.tiny = min(TINY, (TINY_ROOT * eps) * (TINY_ROOT * eps))
    c.tiny_grad = sqrt(c.tiny / (1.0 - beta2))
    adam_decay(&c, lr, weight_decay, decoupled)
    return c


cdef void adam_decay(AdamStep *c, double lr, double weight_decay, bint decoupled) noexcept nogil:
    """Set what depends on the weight decay."""
    c.l2 = 0.0 if decoupled else weight_decay
    c.keep = 1.0 - lr * weight_decay if decoupled else 1.0
    c.plain = c.grad_scale == 1.0 and weight_decay == 0.0


cdef void adam_update(real *grad, real *param, real *m, real *v, Py_ssize_t n, const AdamStep *c,
                      bint zero_grad) noexcept nogil:
    """One Adam step over n values, PANEL at a time; the last few go through padded copies, with the same bits.

    The bias corrections are two scalars, which leaves one square root and one division a value.  In cache these two
    bound the loop, beyond it memory does (four arrays are read and three written; four with zero_grad).  The branches
    go the same way for every value, so they cost less than the arithmetic they spare.
    """
    cdef vec beta1 = v_set(c.beta1), beta2 = v_set(c.beta2)
    cdef vec gain1 = v_set(1.0 - c.beta1), gain2 = v_set(1.0 - c.beta2)
    cdef vec grad_scale = v_set(c.grad_scale), l2 = v_set(c.l2), keep = v_set(c.keep)
    cdef vec step = v_set(-c.step_size), v_scale = v_set(c.v_scale), eps = v_set(c.eps)
    cdef vec p, g, mi, vi
    cdef bint plain = c.plain, flush = c.flush
    cdef real tiny = <real>c.tiny, tiny_grad = <real>c.tiny_grad
    cdef Py_ssize_t i = 0, left
    cdef real[4][PANEL] last
    while i + PANEL <= n:
        p = v_load(param + i)
        g = v_load(grad + i)
        if not plain:
            g = v_fma(l2, p, v_mul(g, grad_scale))
            p = v_mul(p, keep)
        mi = v_fma(beta1, v_load(m + i), v_mul(gain1, g))
        if sizeof(real) == sizeof(float):
            g = v_flush(g, tiny_grad)       # m has the gradient itself
        vi = v_fma(beta2, v_load(v + i), v_mul(gain2, v_mul(g, g)))
        if flush:
            mi = v_flush(mi, tiny)
            vi = v_flush(vi, tiny)
        v_store(m + i, mi)
        v_store(v + i, vi)
        v_store(param + i, v_fma(step, v_div(mi, v_fma(v_sqrt(vi), v_scale, eps)), p))
        if zero_grad:
            v_store(grad + i, v_set(0.0))
        i += PANEL
    left = (n - i) * sizeof(real)
    if left:
        memset(last, 0, sizeof(last))
        memcpy(last[0], grad + i, left)
        memcpy(last[1], param + i, left)
        memcpy(last[2], m + i, left)
        memcpy(last[3], v + i, left)
        adam_update(last[0], last[1], last[2], last[3], PANEL, c, zero_grad)
        memcpy(param + i, last[1], left)
        memcpy(m + i, last[2], left)
        memcpy(v + i, last[3], left)
        if zero_grad:
            memset(grad + i, 0, left)


cdef void adam_run(real *grad, real *param, real *m, real *v, Py_ssize_t n, const AdamStep *c,
                   bint zero_grad) noexcept nogil:
    """adam_update on several threads; each value is computed alone, so their number changes no bit."""
    cdef int threads = threads_for(ADAM_COST * n), i
    cdef Py_ssize_t first, last
    if threads == 1:
        adam_update(grad, param, m, v, n, c, zero_grad)
        return
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        first, last = share(n, i, threads, PANEL), share(n, i + 1, threads, PANEL)
        adam_update(grad + first, param + first, m + first, v + first, last - first, c, zero_grad)


cdef class Adam(Optimizer):
    """Adam or AdamW; each array's states are the moments m and v."""
    cdef double beta1, beta2, eps
    cdef bint decoupled
    cdef bint eps_hat           # whether eps is added to sqrt(v) before its bias correction (the paper's section 2)
    cdef AdamStep scalars       # of the step at hand

    def __init__(self, list params, list states, list decays, list grads, double beta1, double beta2, double eps,
                 bint decoupled, bint eps_hat=False):
        Optimizer.__init__(self, kernels, params, states, decays, grads)
        self.eps_hat = eps_hat
        self.beta1, self.beta2, self.eps, self.decoupled = beta1, beta2, eps, decoupled

    cdef bint prepare(self, double lr, double grad_scale, double largest) noexcept nogil:
        # m is a mean of gradients, so it is at most as large as the largest of them; the divisor is at least eps.
        cdef AdamStep *c = &self.scalars
        c[0] = adam_scalars(lr, self.beta1, self.beta2, self.eps, self.taken, grad_scale, self.decay, self.decoupled)
        if self.eps_hat:
            c.eps *= c.v_scale
        cdef bint apart = c.l2 == 0.0 and fabs(c.keep) <= 1.0       # what is added to a parameter does not depend on it
        cdef double g = largest if apart else largest + c.l2 * self.largest_param(), ratio, move
        self.moment = max(self.moment, g)
        ratio = self.moment / <double>(<real>self.eps)
        move = c.step_size * ratio
        self.param = max(1.0, fabs(c.keep)) * self.param + move
        return (g <= MODERATE and ratio < LARGE and c.step_size < LARGE and move < LARGE
                and (apart or self.param < LARGE))

    cdef void apply(self, Segment *s, double lr) noexcept nogil:
        adam_decay(&self.scalars, lr, s.decay, self.decoupled)
        adam_run(<real *>s.grad, <real *>s.param, <real *>s.state[0], <real *>s.state[1], s.n, &self.scalars, False)
