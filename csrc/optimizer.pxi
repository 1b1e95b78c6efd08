# What every optimiser offers the loop.

cdef class Optimizer:
    """Updates a model's flat buffers, in segments that differ in their weight decay."""
    cdef double[::1] grad
    cdef double[::1] param
    cdef const int64_t[::1] bounds      # (S + 1,) segment s is [bounds[s], bounds[s + 1])
    cdef const double[::1] decay        # (S,) weight decay of each segment
    cdef public int64_t t               # steps taken

    def __init__(self, double[::1] grad not None, double[::1] param not None,
                 const int64_t[::1] bounds not None, const double[::1] decay not None):
        self.grad, self.param, self.bounds, self.decay = grad, param, bounds, decay
        self.same_length("grad", grad)
        if bounds.shape[0] != decay.shape[0] + 1 or bounds[0] != 0 or bounds[decay.shape[0]] != param.shape[0]:
            raise ValueError(f"bounds must lead from 0 to {param.shape[0]} in {decay.shape[0]} segments")

    cdef int same_length(self, str name, double[::1] array) except -1:
        if array.shape[0] != self.param.shape[0]:
            raise ValueError(f"{name} has {array.shape[0]} values, param {self.param.shape[0]}")
        return 0

    cdef void update(self, double lr, double grad_scale, bint zero_grad) noexcept nogil:
        """One step; the gradient is multiplied by grad_scale first, and zeroed last if asked for."""
        pass
