# The kernels one by one, as fastloop/kernels.py calls them: here they take arrays, an engine has their loops.
#
# Uses: declarations.

cdef class Kernels:
    """Each engine makes one object of a subclass (engine_kernels.pxi), whose methods become functions of its module."""

    def embedding_forward(self, const int64_t[::1] inputs not None, const int64_t[::1] positions not None,
                          const double[:, ::1] wte not None, const double[:, ::1] wpe not None,
                          double[:, ::1] x not None):
        if inputs.shape[0]:
            with nogil:
                self.embed(&inputs[0], &positions[0], inputs.shape[0], wte.shape[1], &wte[0, 0], &wpe[0, 0], &x[0, 0])

    def embedding_backward(self, const int64_t[::1] inputs not None, const int64_t[::1] positions not None,
                           const double[:, ::1] dx not None, double[:, ::1] dwte not None,
                           double[:, ::1] dwpe not None):
        if inputs.shape[0]:
            with nogil:
                self.scatter(&inputs[0], inputs.shape[0], dwte.shape[1], &dx[0, 0], &dwte[0, 0])
                self.scatter(&positions[0], inputs.shape[0], dwte.shape[1], &dx[0, 0], &dwpe[0, 0])

    def logits_forward(self, const double[:, ::1] x not None, const double[:, ::1] lm_head not None,
                       double[:, ::1] logits not None):
        if x.shape[0]:
            self.logits(x.shape[0], x.shape[1], lm_head.shape[0], &x[0, 0], &lm_head[0, 0], &logits[0, 0])

    def logits_backward(self, const double[:, ::1] x not None, const double[:, ::1] lm_head not None,
                        const double[:, ::1] dlogits not None, double[:, ::1] dx not None,
                        double[:, ::1] dlm_head not None):
        if x.shape[0]:
            self.logits_grad(x.shape[0], x.shape[1], lm_head.shape[0], &x[0, 0], &lm_head[0, 0], &dlogits[0, 0],
                             &dx[0, 0], &dlm_head[0, 0])

    def cross_entropy_forward(self, const double[:, ::1] logits not None, const int64_t[::1] targets not None,
                              double[::1] losses not None):
        if logits.shape[0]:
            self.cross_entropy(logits.shape[0], logits.shape[1], &logits[0, 0], &targets[0], &losses[0], NULL)

    def cross_entropy_backward(self, const double[:, ::1] logits not None, const int64_t[::1] targets not None,
                               double[:, ::1] dlogits not None):
        cdef Py_ssize_t N = logits.shape[0]
        cdef Buffer memory = Buffer()
        cdef double *losses = <double *>memory.array(N, sizeof(double))
        if N:
            self.cross_entropy(N, logits.shape[1], &logits[0, 0], &targets[0], losses, &dlogits[0, 0])
        return weighted_sum(losses, NULL, N) / N

    def adam_step(self, const double[::1] grad not None, double[::1] param not None, double[::1] m not None,
                  double[::1] v not None, double lr, double beta1, double beta2, double eps, int64_t t,
                  double weight_decay, bint decoupled, double grad_scale, bint zero_grad):
        # grad is written to only if zero_grad; const admits a read-only gradient otherwise.
        if param.shape[0]:
            with nogil:
                self.adam(<double *>&grad[0], &param[0], &m[0], &v[0], param.shape[0], lr, beta1, beta2, eps, t,
                          weight_decay, decoupled, grad_scale, zero_grad)

    def grad_norm(self, const double[::1] grad not None):
        cdef Py_ssize_t n = grad.shape[0]
        cdef Buffer work = Buffer()
        cdef double norm
        if n == 0:
            return 0.0
        cdef double *partial = <double *>work.array(norm_blocks(n), sizeof(double))
        with nogil:
            norm = self.norm2(&grad[0], n, partial)
        return norm

    cdef void scale(self, double *x, Py_ssize_t n, double factor) noexcept nogil:
        """x *= factor."""
        pass

    cdef double norm2(self, const double *x, Py_ssize_t n, double *partial) noexcept nogil:
        """sqrt(sum x^2); `partial` holds norm_blocks(n) values.  Not finite only where an x or the norm is not."""
        return 0.0

    cdef Py_ssize_t clip_values(self, double *x, Py_ssize_t n, double limit) noexcept nogil:
        """Bring every x into [-limit, limit]; return how many were outside."""
        return 0

    cdef void embed(self, const int64_t *inputs, const int64_t *positions, Py_ssize_t N, Py_ssize_t D,
                    const double *wte, const double *wpe, double *x) noexcept nogil:
        pass

    cdef void scatter(self, const int64_t *ids, Py_ssize_t N, Py_ssize_t D, const double *dx,
                      double *dtable) noexcept nogil:
        pass

    cdef int logits(self, Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const double *x, const double *lm_head,
                    double *logits) except -1:
        return 0

    cdef int logits_grad(self, Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const double *x, const double *lm_head,
                         const double *dlogits, double *dx, double *dlm_head) except -1:
        return 0

    cdef int cross_entropy(self, Py_ssize_t N, Py_ssize_t V, const double *logits, const int64_t *targets,
                           double *losses, double *dlogits) except -1:
        """losses of each row of logits (N, V), and dlogits (N, V) of their mean unless it is NULL."""
        return 0

    cdef void adam(self, double *grad, double *param, double *m, double *v, Py_ssize_t n, double lr, double beta1,
                   double beta2, double eps, int64_t t, double weight_decay, bint decoupled, double grad_scale,
                   bint zero_grad) noexcept nogil:
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
