# What every optimiser offers the training loop and the user's own loops; and its promise that a step never makes a
# parameter or a moment that is not finite.
#
# Before each step `prepare` bounds what it can write, from a few scalars: the largest gradient (at most the norm), the
# largest first moment so far, and with weight decay the largest parameter.  Adding to a finite number overflows only
# where what is added is above 1e292, half a unit in the last place of the largest number; with practical settings no
# step is as large, whatever the parameter.  Where the bounds are not low enough, `look` takes the step on copies first,
# and checks the results.
#
# Uses: declarations, floats, threads.

cdef enum:
    LOOK = 256      # values that `look` copies at a time


cdef class Optimizer:
    """Updates arrays in place: the parts of a model's flat buffers with one weight decay each, or the user's arrays."""

    def __init__(self, Kernels kernels not None, list params not None, list states not None, list decays not None,
                 list grads=None):
        """params: arrays of n values; for each of them, states: a list of arrays (n,), and decays: its weight decay.

        grads: arrays (n,) that every step reads, or None where each step is given its own (step_with).
        """
        cdef Py_ssize_t i, j, longest = 0
        cdef Segment *s
        cdef list arrays = []       # so that they outlive the pointers
        self.kernels = kernels
        self.kept = arrays
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
            s.n, s.decay = array.size, decays[i]
            self.decay = max(self.decay, s.decay)
            longest = max(longest, s.n)
            s.param = self.pointer(array, s.n, arrays)
            for j in range(len(states[i])):
                s.state[j] = self.pointer(states[i][j], s.n, arrays)
            if grads is not None:
                s.grad = self.pointer(grads[i], s.n, arrays)
        self.partial = <double *>self.partial_memory.array(norm_blocks(longest), sizeof(double))

    cdef void *pointer(self, array, Py_ssize_t n, list arrays) except? NULL:
        cdef Floats x = self.kernels.vector(array, True)
        if x.rows != n:
            raise ValueError(f"an array of {n} values expected, got {x.rows}")
        arrays.append(x)
        return x.data

    @property
    def t(self):
        """Steps taken.  Whoever sets it may have written to the moments as well."""
        return self.taken

    @t.setter
    def t(self, int64_t value):
        self.taken, self.moment = value, INFINITY

    def __reduce__(self):
        return not_copied(self)

    def step_with(self, list grads not None, double lr, bint look):
        """Take one step from these gradients, which are not copied; None where it was taken.

        Otherwise nothing was written, and the result says why: (i, None), grads[i] is no C-contiguous array of the
        right dtype and its parameter's shape; (i, norm), its norm or the square of it is not finite (only with `look`;
        Adam squares the gradient); (-1, the largest norm), the step would write something not finite.  Raises
        ValueError where a gradient and a parameter overlap in memory.
        """
        cdef Py_ssize_t i = 0, j, taken = 0
        cdef Py_ssize_t size = self.kernels.itemsize
        cdef Segment *s
        cdef Segment *other
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
                s.grad = self.views[i].buf          # the step does not write to it
                for j in range(self.count if s.n else 0):
                    other = &self.segments[j]
                    if (<char *>s.grad < <char *>other.param + other.n * size
                            and <char *>other.param < <char *>s.grad + s.n * size):
                        raise ValueError(f"grads[{i}] and params[{j}] overlap in memory")
            for i in range(self.count if look else 0):
                s = &self.segments[i]
                with nogil:
                    norm = self.kernels.norm2(s.grad, s.n, self.partial)
                if not norm <= self.kernels.squarable:
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
        """Make views[i] a view of a gradient; False, and no view, unless it is aligned and its dtype and shape fit."""
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
        fits = view.ndim == len(shape) and float_size(view) == self.kernels.itemsize
        for j in range(view.ndim if fits else 0):
            fits = fits and view.shape[j] == <Py_ssize_t>shape[j]
        if not fits:
            PyBuffer_Release(view)
        return fits

    def step(self, double lr):
        """Take one step from the gradients, without checking that they are finite; whether it was taken."""
        cdef bint stepped
        check_free("step()", self.busy)
        self.busy = True
        self.param = INFINITY
        with nogil:
            stepped = self.update_unseen(lr)
        self.busy = False
        return stepped

    cdef bint update(self, double lr, double grad_scale, double largest) noexcept nogil:
        """Take one step.  The gradient is multiplied by grad_scale as it is read; `largest` bounds its values then.

        False, and nothing written, where lr is not finite or negative or the step would write something not finite.
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
        """The same, assuming that these gradients and all before them were moderate; only lr is checked."""
        cdef bint stepped
        self.moment = self.kernels.moderate
        stepped = self.update(lr, 1.0, self.kernels.moderate)
        self.moment = INFINITY
        return stepped

    cdef bint prepare(self, double lr, double grad_scale, double largest) noexcept nogil:
        """Set the scalars of a step; whether the bounds show that all it writes is finite."""
        return False

    cdef void apply(self, Segment *s, double lr) noexcept nogil:
        """Take the prepared step over one array."""
        pass

    cdef bint look(self, double lr) noexcept nogil:
        """Whether all that the prepared step would write is finite, found by taking it on copies; updates the bounds.

        A parameter that already is not finite, such as in the row of an id that never occurs, does not count.
        """
        cdef double[4][LOOK] copies         # of float32 too
        cdef Py_ssize_t size = self.kernels.itemsize
        cdef double moment = 0.0, param = 0.0, other = 0.0
        cdef Py_ssize_t i, j, first, n
        cdef Segment *s
        cdef Segment part
        for i in range(self.count):
            s = &self.segments[i]
            part = s[0]
            part.grad, part.param = <void *>copies[0], <void *>copies[1]
            first = 0
            while first < s.n:
                part.n = n = min(LOOK, s.n - first)
                memcpy(copies[0], <char *>s.grad + first * size, n * size)
                memcpy(copies[1], <char *>s.param + first * size, n * size)
                for j in range(2):
                    if s.state[j] != NULL:
                        part.state[j] = <void *>copies[2 + j]
                        memcpy(copies[2 + j], <char *>s.state[j] + first * size, n * size)
                self.apply(&part, lr)
                param = max(param, self.kernels.largest(copies[1], <char *>s.param + first * size, n))
                if s.state[0] != NULL:
                    moment = max(moment, self.kernels.largest(copies[2], NULL, n))
                if s.state[1] != NULL:
                    other = max(other, self.kernels.largest(copies[3], NULL, n))
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
