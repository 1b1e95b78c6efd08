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
    cdef Py_buffer *views       # of the gradients of a step
    cdef list shapes            # of the parameters
    cdef Py_ssize_t count
    cdef Buffer memory
    cdef Buffer partial         # for the norm
    cdef object kept            # the arrays, so that they outlive the pointers
    cdef public int64_t t       # steps taken
    cdef bint busy              # whether a step is at work; see check_free

    def __init__(self, list params not None, list states not None, list decays not None, list grads=None):
        """params: arrays of n values; of each, states: a list of arrays (n,); decays: its weight decay.

        grads: arrays (n,) that stay, or None where each step brings its own (step_with).
        """
        cdef Py_ssize_t i, j
        cdef double[::1] array
        cdef Segment *s
        self.kept = (params, states, grads)
        self.memory, self.partial = Buffer(), Buffer()
        self.count = len(params)
        self.memory.reserve(self.count * ((sizeof(Segment) + sizeof(Py_buffer)) // 8))
        self.segments = <Segment *>self.memory.data
        self.views = <Py_buffer *>(self.segments + self.count)
        self.shapes = [None] * self.count
        for i in range(self.count):
            s = &self.segments[i]
            self.shapes[i] = params[i].shape
            array = params[i].reshape(-1)
            s.n, s.decay = array.shape[0], decays[i]
            self.partial.reserve(s.n // NORM_BLOCK + 1)
            s.param = self.pointer(array, s.n)
            for j in range(len(states[i])):
                s.state[j] = self.pointer(states[i][j], s.n)
            if grads is not None:
                s.grad = self.pointer(grads[i], s.n)

    def __reduce__(self):
        return not_copied(self)

    cdef double *pointer(self, double[::1] array, Py_ssize_t n) except? NULL:
        if array is None or array.shape[0] != n:
            raise ValueError(f"an array of {n} values expected")
        return &array[0] if n else NULL

    def step_with(self, list grads not None, double lr, bint look):
        """One step from these gradients, which are read where they are; None where it was taken.

        Else nothing was written, and (i, None) says that grads[i] is no C-contiguous float64 array of its parameter's
        shape, (i, norm) that its norm or the square of it is not finite (checked if asked to look: Adam squares the
        gradient).  Raises ValueError where a gradient overlaps an array that the step writes to.
        """
        cdef Py_ssize_t i = 0, j, taken = 0
        cdef Segment *s
        cdef double norm
        if len(grads) != self.count:
            raise ValueError(f"{len(grads)} gradients for {self.count} arrays")
        check_free("step(grads)", self.busy)
        self.busy = True
        try:
            for i in range(self.count):
                if not self.view(i, grads[i]):
                    return i, None
                taken += 1
                s = &self.segments[i]
                s.grad = <double *>self.views[i].buf        # the step does not write to it
                for j in range(self.count if s.n else 0):
                    if s.grad < self.segments[j].param + self.segments[j].n and self.segments[j].param < s.grad + s.n:
                        raise ValueError(f"grads[{i}] and params[{j}] overlap in memory")
            for i in range(self.count if look else 0):
                s = &self.segments[i]
                with nogil:
                    norm = norm2(s.grad, s.n, self.partial.data)
                if not isfinite(norm * norm):
                    return i, norm
            with nogil:
                self.update(lr, 1.0)
        finally:
            self.busy = False
            for j in range(taken):
                PyBuffer_Release(&self.views[j])

    cdef bint view(self, Py_ssize_t i, grad) except -1:
        """Make views[i] that of a gradient; False (and no view) unless it is aligned float64 of the right shape."""
        cdef Py_buffer *view = &self.views[i]
        cdef tuple shape = self.shapes[i]
        cdef Py_ssize_t j
        cdef bint fits
        if not PyObject_CheckBuffer(grad):
            return False
        try:
            PyObject_GetBuffer(grad, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        except (BufferError, ValueError):       # NumPy raises the latter
            return False
        fits = view.ndim == len(shape) and strcmp(view.format, b"d") == 0 and not <uintptr_t>view.buf & 7
        for j in range(view.ndim if fits else 0):
            fits = fits and view.shape[j] == <Py_ssize_t>shape[j]
        if not fits:
            PyBuffer_Release(view)
        return fits

    def step(self, double lr):
        """One step from the gradients, which are left as they are."""
        check_free("step()", self.busy)
        self.busy = True
        with nogil:
            self.update(lr, 1.0)
        self.busy = False

    cdef void update(self, double lr, double grad_scale) noexcept nogil:
        """One step; the gradient is multiplied by grad_scale as it is read."""
        pass
