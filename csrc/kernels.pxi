# The kernels one by one, as fastloop/kernels.py calls them: here they take arrays, an engine has their loops.
#
# Uses: declarations, floats.

cdef class Kernels:
    """Each engine makes one object of a subclass (engine_kernels.pxi), whose methods become functions of its module.

    Arrays of values are C-contiguous, and of the engine's precision; losses are float64.
    """

    cdef Floats vector(self, array, bint writable):
        return floats_of(array, self.itemsize, 1, writable)

    cdef Floats matrix(self, array, bint writable):
        return floats_of(array, self.itemsize, 2, writable)

    def embedding_forward(self, const int64_t[::1] inputs not None, const int64_t[::1] positions not None,
                          wte, wpe, x):
        cdef Floats wte_ = self.matrix(wte, False), wpe_ = self.matrix(wpe, False), x_ = self.matrix(x, True)
        if inputs.shape[0]:
            with nogil:
                self.embed(&inputs[0], &positions[0], inputs.shape[0], wte_.columns, wte_.data, wpe_.data, x_.data)

    def embedding_backward(self, const int64_t[::1] inputs not None, const int64_t[::1] positions not None,
                           dx, dwte, dwpe):
        cdef Floats dx_ = self.matrix(dx, False), dwte_ = self.matrix(dwte, True), dwpe_ = self.matrix(dwpe, True)
        if inputs.shape[0]:
            with nogil:
                self.scatter(&inputs[0], inputs.shape[0], dwte_.columns, dx_.data, dwte_.data)
                self.scatter(&positions[0], inputs.shape[0], dwte_.columns, dx_.data, dwpe_.data)

    def logits_forward(self, x, lm_head, logits):
        cdef Floats x_ = self.matrix(x, False), lm_head_ = self.matrix(lm_head, False), out = self.matrix(logits, True)
        if x_.rows:
            self.logits(x_.rows, x_.columns, lm_head_.rows, x_.data, lm_head_.data, out.data)

    def logits_backward(self, x, lm_head, dlogits, dx, dlm_head):
        cdef Floats x_ = self.matrix(x, False), lm_head_ = self.matrix(lm_head, False)
        cdef Floats dlogits_ = self.matrix(dlogits, False), dx_ = self.matrix(dx, True)
        cdef Floats dlm_head_ = self.matrix(dlm_head, True)
        if x_.rows:
            self.logits_grad(x_.rows, x_.columns, lm_head_.rows, x_.data, lm_head_.data, dlogits_.data, dx_.data,
                             dlm_head_.data)

    def cross_entropy_forward(self, logits, const int64_t[::1] targets not None, double[::1] losses not None):
        cdef Floats logits_ = self.matrix(logits, False)
        if logits_.rows:
            self.cross_entropy(logits_.rows, logits_.columns, logits_.data, &targets[0], &losses[0], NULL)

    def cross_entropy_backward(self, logits, const int64_t[::1] targets not None, dlogits):
        cdef Floats logits_ = self.matrix(logits, False), dlogits_ = self.matrix(dlogits, True)
        cdef Py_ssize_t N = logits_.rows
        cdef Buffer memory = Buffer()
        cdef double *losses = <double *>memory.array(N, sizeof(double))
        if N:
            self.cross_entropy(N, logits_.columns, logits_.data, &targets[0], losses, dlogits_.data)
        return weighted_sum(losses, NULL, N) / N

    def adam_step(self, grad, param, m, v, double lr, double beta1, double beta2, double eps, int64_t t,
                  double weight_decay, bint decoupled, double grad_scale, bint zero_grad):
        # grad is written to only if zero_grad; a read-only gradient is admitted otherwise.
        cdef Floats grad_ = self.vector(grad, zero_grad), param_ = self.vector(param, True)
        cdef Floats m_ = self.vector(m, True), v_ = self.vector(v, True)
        if param_.rows:
            with nogil:
                self.adam(grad_.data, param_.data, m_.data, v_.data, param_.rows, lr, beta1, beta2, eps, t,
                          weight_decay, decoupled, grad_scale, zero_grad)

    def grad_norm(self, grad):
        cdef Floats grad_ = self.vector(grad, False)
        cdef Py_ssize_t n = grad_.rows
        cdef Buffer work = Buffer()
        cdef double norm
        if n == 0:
            return 0.0
        cdef double *partial = <double *>work.array(norm_blocks(n), sizeof(double))
        with nogil:
            norm = self.norm2(grad_.data, n, partial)
        return norm

    cdef void scale(self, void *x, Py_ssize_t n, double factor) noexcept nogil:
        """x *= factor."""
        pass

    cdef double norm2(self, const void *x, Py_ssize_t n, double *partial) noexcept nogil:
        """sqrt(sum x^2); `partial` holds norm_blocks(n) values.  Not finite only where an x or the norm is not."""
        return 0.0

    cdef double largest(self, const void *x, const void *before, Py_ssize_t n) noexcept nogil:
        """The largest size of n values, infinite where one is not finite that was so before (NULL: all were)."""
        return 0.0

    cdef Py_ssize_t clip_values(self, void *x, Py_ssize_t n, double limit) noexcept nogil:
        """Bring every x into [-limit, limit]; return how many were outside."""
        return 0

    cdef void embed(self, const int64_t *inputs, const int64_t *positions, Py_ssize_t N, Py_ssize_t D,
                    const void *wte, const void *wpe, void *x) noexcept nogil:
        pass

    cdef void scatter(self, const int64_t *ids, Py_ssize_t N, Py_ssize_t D, const void *dx,
                      void *dtable) noexcept nogil:
        pass

    cdef int logits(self, Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const void *x, const void *lm_head,
                    void *logits) except -1:
        return 0

    cdef int logits_grad(self, Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const void *x, const void *lm_head,
                         const void *dlogits, void *dx, void *dlm_head) except -1:
        return 0

    cdef int cross_entropy(self, Py_ssize_t N, Py_ssize_t V, const void *logits, const int64_t *targets,
                           double *losses, void *dlogits) except -1:
        """losses of each row of logits (N, V), and dlogits (N, V) of their mean unless it is NULL."""
        return 0

    cdef void adam(self, void *grad, void *param, void *m, void *v, Py_ssize_t n, double lr, double beta1,
                   double beta2, double eps, int64_t t, double weight_decay, bint decoupled, double grad_scale,
                   bint zero_grad) noexcept nogil:
        pass

    cdef bint finite(self, const void *x, Py_ssize_t n) noexcept nogil:
        """Whether all values are."""
        return False

    cdef void update_part(self, const Part *part, Py_ssize_t first, Py_ssize_t last, bint adam) noexcept nogil:
        """A step of Adam, or else of SGD, for the values first .. last of a tensor."""
        pass


cdef double weighted_sum(const double *x, const double *weights, Py_ssize_t n) noexcept nogil:
    """sum(x * weights), or sum(x) where weights is NULL, compensated (Neumaier 1974): no error grows with n."""
    cdef Py_ssize_t i
    cdef double total = 0.0, lost = 0.0, term, new
    for i in range(n):
        term = x[i] if weights == NULL else x[i] * weights[i]
        new = total + term
        lost += (total - new) + term if fabs(total) >= fabs(term) else (term - new) + total
        total = new
    # The correction of an infinite sum is NaN; the sum itself is what the caller should see.
    return total + lost if isfinite(total) else total
