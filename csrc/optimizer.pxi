# What every optimiser offers the loop, and the user's own loops.

cdef struct Segment:
    double *grad                # (n,) as are the others
    double *param
    double *state[2]            # Adam's moments, SGD's velocity; NULL where there are fewer
    Py_ssize_t n
    double decay                # weight decay


cdef class Optimizer:
    """Updates arrays in place: stretches of a model's flat buffers that differ in their decay, or the user's arrays."""
    cdef Segment *segments
    cdef Py_ssize_t count
    cdef Buffer memory
    cdef Buffer partial         # for the norm
    cdef object kept            # the arrays, so that they outlive the pointers
    cdef public int64_t t       # steps taken

    def __init__(self, list params not None, list states not None, list decays not None, list grads=None):
        """params: arrays (n,); of each, states: a list of arrays (n,); decays: its weight decay.

        grads: arrays (n,) that stay, or None where each step brings its own (take_grad).
        """
        cdef Py_ssize_t i, j
        cdef double[::1] array
        cdef Segment *s
        self.kept = (params, states, grads)
        self.memory, self.partial = Buffer(), Buffer()
        self.memory.reserve(len(params) * (sizeof(Segment) // 8))
        self.segments = <Segment *>self.memory.data
        self.count = len(params)
        for i in range(self.count):
            s = &self.segments[i]
            array = params[i]
            s.n, s.decay = array.shape[0], decays[i]
            self.partial.reserve(s.n // NORM_BLOCK + 1)
            s.param = self.pointer(params[i], s.n)
            for j in range(len(states[i])):
                s.state[j] = self.pointer(states[i][j], s.n)
            if grads is not None:
                s.grad = self.pointer(grads[i], s.n)

    cdef double *pointer(self, double[::1] array, Py_ssize_t n) except? NULL:
        if array is None or array.shape[0] != n:
            raise ValueError(f"an array of {n} values expected")
        return &array[0] if n else NULL

    def take_grad(self, Py_ssize_t i, const double[::1] grad not None, bint look):
        """Read the i-th gradient here at the next step; return its norm, or 0 unless asked to look.

        It must live until then.  Raises ValueError where it overlaps an array that the step writes to.
        """
        cdef Py_ssize_t j, n = grad.shape[0]
        cdef Segment *s = &self.segments[i]
        cdef double norm = 0.0
        if n != s.n:
            raise ValueError(f"grads[{i}] has {n} values, params[{i}] {s.n}")
        if n == 0:
            return norm
        for j in range(self.count):
            if &grad[0] < self.segments[j].param + self.segments[j].n and self.segments[j].param < &grad[0] + n:
                raise ValueError(f"grads[{i}] and params[{j}] overlap in memory")
        s.grad = <double *>&grad[0]     # step does not write to it
        if look:
            with nogil:
                norm = norm2(s.grad, n, self.partial.data)
        return norm

    def step(self, double lr):
        """One step from the gradients, which are left as they are."""
        with nogil:
            self.update(lr, 1.0, False)

    cdef void update(self, double lr, double grad_scale, bint zero_grad) noexcept nogil:
        """One step; the gradient is multiplied by grad_scale first, and zeroed last if asked for."""
        pass
