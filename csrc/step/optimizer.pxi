# What every optimiser offers the loop, and the user's own loops; and its promise, that no parameter and no moment
# becomes anything not finite.
#
# Before a step `prepare` bounds what it can write, from a few scalars: the largest gradient (its norm is known), the
# largest first moment so far, and where a parameter enters more than by itself, the largest parameter.  A sum with a
# finite number overflows only where the other is above 1e292, half the last place of the largest number, so that with
# practical settings no parameter can, whatever it is.  Where the bounds do not exclude it, `look` takes the step on
# copies first, and finds out.

LARGE = 1e290       # a hundredth of that: the bounds are rounded, too
MODERATE = 1e153    # the square of a gradient up to here may be added to any finite v
cdef enum:
    LOOK = 256                  # values copied at a time


cdef class Optimizer:
    """Updates arrays in place: stretches of a model's flat buffers that differ in their decay, or the user's arrays."""

    def __init__(self, Kernels kernels not None, list params not None, list states not None, list decays not None,
                 list grads=None):
        """params: arrays of n values; of each, states: a list of arrays (n,); decays: its weight decay.

        grads: arrays (n,) that stay, or None where each step brings its own (step_with).
        """
        cdef Py_ssize_t i, j, longest = 0
        cdef double[::1] array
        cdef Segment *s
        self.kernels = kernels
        self.kept = (params, states, grads)
        self.memory, self.partial_memory = Buffer(), Buffer()
        self.moment = self.param = INFINITY
        self.count = len(params)
        while self.memory.lays_out():
            self.segments = <Segment *>take(&self.memory.arena, self.count, sizeof(Segment))
            self.views = <Py_buffer *>take(&self.memory.arena, self.count, sizeof(Py_buffer))
        self.shapes = [None] * self.count
        for i in range(self.count):
            s = &self.segments[i]
            self.shapes[i] = params[i].shape
            array = params[i].reshape(-1)
            s.n, s.decay = array.shape[0], decays[i]
            self.decay = max(self.decay, s.decay)
            longest = max(longest, s.n)
            s.param = pointer(array, s.n)
            for j in range(len(states[i])):
                s.state[j] = pointer(states[i][j], s.n)
            if grads is not None:
                s.grad = pointer(grads[i], s.n)
        self.partial = <double *>self.partial_memory.array(norm_blocks(longest), sizeof(double))

    @property
    def t(self):
        """Steps taken.  To set it says that the moments may have been written to as well."""
        return self.taken

    @t.setter
    def t(self, int64_t value):
        self.taken, self.moment = value, INFINITY

    def __reduce__(self):
        return not_copied(self)

    def step_with(self, list grads not None, double lr, bint look):
        """One step from these gradients, which are read where they are; None where it was taken.

        Else nothing was written, and (i, None) says that grads[i] is no C-contiguous float64 array of its parameter's
        shape, (i, norm) that its norm or the square of it is not finite (checked if asked to look: Adam squares the
        gradient), (-1, the largest norm) that the step would write something not finite.  Raises ValueError where a
        gradient overlaps an array that the step writes to.
        """
        cdef Py_ssize_t i = 0, j, taken = 0
        cdef Segment *s
        cdef double norm, largest = 0.0
        cdef bint stepped
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
                    norm = self.kernels.norm2(s.grad, s.n, self.partial)
                if not isfinite(norm * norm):
                    return i, norm
                largest = max(largest, norm)
            self.param = INFINITY
            with nogil:
                stepped = self.update(lr, 1.0, largest) if look else self.update_unseen(lr)
            if not stepped:
                return -1, largest
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
        """One step from the gradients, which are not looked at and left as they are; whether it was taken."""
        cdef bint stepped
        check_free("step()", self.busy)
        self.busy = True
        self.param = INFINITY
        with nogil:
            stepped = self.update_unseen(lr)
        self.busy = False
        return stepped

    cdef bint update(self, double lr, double grad_scale, double largest) noexcept nogil:
        """One step; the gradient is multiplied by grad_scale as it is read, and no value of it is then above `largest`.

        False, and nothing written, where lr is no learning rate or the step would write something not finite.
        """
        cdef Py_ssize_t i
        if not 0.0 <= lr < INFINITY:
            return False
        self.taken += 1
        if not (self.prepare(lr, grad_scale, largest) or self.look(lr)):
            self.taken -= 1
            self.moment = INFINITY
            return False
        for i in range(self.count):
            self.apply(&self.segments[i], lr)
        return True

    cdef bint update_unseen(self, double lr) noexcept nogil:
        """The same with gradients that are taken to be finite, as all before them; only too large an lr is seen."""
        cdef bint stepped
        self.moment = MODERATE
        stepped = self.update(lr, 1.0, MODERATE)
        self.moment = INFINITY
        return stepped

    cdef bint prepare(self, double lr, double grad_scale, double largest) noexcept nogil:
        """Set the scalars of a step; whether the bounds say that all it writes is finite."""
        return False

    cdef void apply(self, Segment *s, double lr) noexcept nogil:
        """The step that was prepared, over one array."""
        pass

    cdef bint look(self, double lr) noexcept nogil:
        """Whether all that the prepared step would write is finite, and then the bounds as they will be.

        A parameter that is not finite already, such as the row of a character that never occurs, is left to its owner.
        """
        cdef double[4][LOOK] copies
        cdef double moment = 0.0, param = 0.0, other = 0.0
        cdef Py_ssize_t i, j, first, n
        cdef Segment *s
        cdef Segment part
        for i in range(self.count):
            s = &self.segments[i]
            part = s[0]
            part.grad, part.param = copies[0], copies[1]
            first = 0
            while first < s.n:
                part.n = n = min(LOOK, s.n - first)
                memcpy(copies[0], s.grad + first, n * 8)
                memcpy(copies[1], s.param + first, n * 8)
                for j in range(2):
                    if s.state[j] != NULL:
                        part.state[j] = copies[2 + j]
                        memcpy(copies[2 + j], s.state[j] + first, n * 8)
                self.apply(&part, lr)
                param = max(param, largest_of(copies[1], s.param + first, n))
                if s.state[0] != NULL:
                    moment = max(moment, largest_of(copies[2], NULL, n))
                if s.state[1] != NULL:
                    other = max(other, largest_of(copies[3], NULL, n))
                first += n
        self.moment, self.param = moment, param
        return param < INFINITY and moment < INFINITY and other < INFINITY

    cdef double largest_param(self) noexcept nogil:
        """A bound on the parameters' size, infinite where one is not finite."""
        cdef Py_ssize_t i
        cdef double norm
        if not self.param < INFINITY:
            self.param = 0.0
            for i in range(self.count):
                norm = self.kernels.norm2(self.segments[i].param, self.segments[i].n, self.partial)
                self.param = max(self.param, norm) if isfinite(norm) else INFINITY
        return self.param


cdef double *pointer(double[::1] array, Py_ssize_t n) except? NULL:
    if array is None or array.shape[0] != n:
        raise ValueError(f"an array of {n} values expected")
    return &array[0] if n else NULL


cdef double largest_of(const double *x, const double *before, Py_ssize_t n) noexcept nogil:
    """The largest size of n values, infinite where one is not finite that was so before (NULL: all were)."""
    cdef double largest = 0.0
    cdef Py_ssize_t i
    for i in range(n):
        if isfinite(x[i]):
            largest = max(largest, fabs(x[i]))
        elif before == NULL or isfinite(before[i]):
            return INFINITY
    return largest
