# A step of a torch optimiser over all its tensors, in one call.
#
# Where a tensor lies is read from the tensor itself at every step, since its storage may have been exchanged between
# two steps.  What does not change from step to step (that a parameter is dense, that its state fits it) is checked
# where one of the tensors, or its address, is another one than before.
#
# Uses: declarations, threads.

# A value takes as long as so many floating-point operations of a matrix product, in which threads_for counts.
cdef enum:
    UPDATE_COST = 48
    CHECK_COST = 4


cdef class Tensors:
    """The tensors of a torch optimiser; `adam` or, without it, SGD; `decoupled` weight decay as AdamW has it."""
    cdef Kernels of_float32, of_float64
    cdef bint adam
    cdef tuple slots            # the names of the state's tensors
    cdef object check           # (param, entry, slots): raises, or makes the entry of the state fit to be used
    cdef object check_apart     # (params): raises where two overlap in memory
    cdef object like            # (param, grad) -> the gradient laid out as the parameter
    cdef list known             # of each part, (param, dtype, whether contiguous, step, state...) as last checked
    cdef list grads             # of this step, so that they outlive the pointers
    cdef readonly list params
    cdef Buffer memory
    cdef Part *parts
    cdef Py_ssize_t room
    cdef bint busy

    def __init__(self, Kernels of_float32 not None, Kernels of_float64 not None, bint adam, tuple slots not None, check,
                 check_apart, like):
        self.of_float32, self.of_float64, self.adam, self.slots = of_float32, of_float64, adam, slots
        self.check, self.check_apart, self.like, self.known = check, check_apart, like, []

    def __reduce__(self):
        return not_copied(self)

    def step(self, list groups not None, state, list hyper not None, bint look):
        """Take a step with every parameter that has a gradient.

        hyper: for each group (lr, three hyperparameters, weight_decay, decoupled, scale), see Part.  Returns None; or,
        with `look`, the first parameter whose gradient is not finite, and then nothing has been written.  Parameters,
        moments and steps are written in place; `params` holds the parameters.
        """
        cdef Py_ssize_t count = 0, total = 0, bad
        cdef Part *part
        cdef tuple slots
        cdef bint moved = False, checked = False    # whether a parameter, or its memory, is another one than before
        cdef list new = []          # entries of the state to which this step has added a velocity
        check_free("step()", self.busy)
        self.busy = True
        try:
            self.grads, self.params = [], []
            for group in groups:
                count += len(group["params"])
            self.make_room(count)
            count = 0
            for group, (lr, a, b, c, decay, decoupled, scale) in zip(groups, hyper):
                for param in group["params"]:
                    grad = param.grad
                    if grad is None:
                        continue
                    part = &self.parts[count]
                    slots = self.slots if self.adam or a else ()
                    entry = state[param] if slots else None
                    part.t = 2
                    if not self.adam and slots and entry.get(slots[0]) is None:
                        part.t = 1
                        new.append(entry)
                    moved |= self.place(part, count, param, grad, entry, slots)
                    part.lr, part.decay, part.decoupled, part.scale = lr, decay, decoupled, scale
                    part.hyper[0], part.hyper[1], part.hyper[2] = a, b, c
                    part.first = total
                    total += tiles(part.n, WIDEST_PANEL)
                    self.params.append(param)
                    count += 1
            if moved:
                self.check_apart(self.params)
            checked = True
            with nogil:
                bad = self.first_not_finite(count, total) if look else count
                if bad == count:
                    self.update(count, total)
            if bad == count:
                return None
            for entry in new:       # so that the next step is their first
                entry[self.slots[0]] = None
            return self.params[bad]
        finally:
            self.busy = False
            self.grads = None
            if not checked:
                self.known = [None] * self.room

    cdef int make_room(self, Py_ssize_t count) except -1:
        if count > self.room:
            self.known = [None] * count
            self.memory = Buffer()
            self.room = 0
            self.parts = <Part *>self.memory.array(count, sizeof(Part))
            self.room = count
        return 0

    cdef bint place(self, Part *part, Py_ssize_t k, param, grad, dict entry, tuple slots) except -1:
        """Say where a parameter, its gradient and its state lie; whether they had to be checked."""
        cdef tuple known = self.known[k]
        cdef Py_ssize_t i, n = len(slots)
        cdef bint same = known is not None and known[0] is param and len(known) == 4 + n
        same = same and part.param == address(param)
        for i in range(n):
            same = same and known[4 + i] is entry.get(slots[i]) and part.state[i] == address(known[4 + i])
        if self.adam:
            same = same and known[3] is entry.get("step") and part.step == address(known[3])
        if not same:
            self.known[k] = None
            self.check(param, entry, slots)
            part.param, part.n, part.single = address(param), param.numel(), param.itemsize == 4
            part.state[0] = part.state[1] = part.step = NULL
            known = param, param.dtype, param.is_contiguous(), entry["step"] if self.adam else None
            for i in range(n):
                known += (entry[slots[i]],)
                part.state[i] = address(known[4 + i])
            if self.adam:
                part.step, part.step_single = address(known[3]), known[3].itemsize == 4
            self.known[k] = known
        if self.adam:
            part.t = <int64_t>((<float *>part.step)[0] if part.step_single else (<double *>part.step)[0]) + 1
        if not (known[2] and grad.dtype is known[1] and grad.is_contiguous() and grad.numel() == part.n):
            grad = self.like(param, grad)
        part.grad = address(grad)
        self.grads.append(grad)
        return not same

    cdef Py_ssize_t first_not_finite(self, Py_ssize_t count, Py_ssize_t total) noexcept nogil:
        cdef int threads = threads_for(CHECK_COST * WIDEST_PANEL * total), i
        cdef Py_ssize_t k, odd = 0
        if threads == 1:
            odd = self.share_not_finite(0, total, count)
        else:
            for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                odd += self.share_not_finite(total * i // threads, total * (i + 1) // threads, count)
        if odd == 0:
            return count
        for k in range(count):
            if not self.finite(&self.parts[k], 0, self.parts[k].n):
                return k
        return count

    cdef Py_ssize_t share_not_finite(self, Py_ssize_t first, Py_ssize_t last, Py_ssize_t count) noexcept nogil:
        """Whether a gradient in the panels first .. last is not finite."""
        cdef Py_ssize_t k, begin, end
        cdef Part *part
        for k in range(count):
            part = &self.parts[k]
            begin, end = value_at(part, first), value_at(part, last)
            if begin < end and not self.finite(part, begin, end):
                return 1
        return 0

    cdef bint finite(self, const Part *part, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
        if part.single:
            return self.of_float32.finite(<float *>part.grad + first, last - first)
        return self.of_float64.finite(<double *>part.grad + first, last - first)

    cdef void update(self, Py_ssize_t count, Py_ssize_t total) noexcept nogil:
        cdef int threads = threads_for(UPDATE_COST * WIDEST_PANEL * total), i
        cdef Py_ssize_t k
        cdef Part *part
        if threads == 1:
            self.update_share(0, total, count)
        else:
            for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                self.update_share(total * i // threads, total * (i + 1) // threads, count)
        for k in range(count):
            part = &self.parts[k]
            if part.step != NULL and part.step_single:
                (<float *>part.step)[0] += 1.0
            elif part.step != NULL:
                (<double *>part.step)[0] += 1.0

    cdef void update_share(self, Py_ssize_t first, Py_ssize_t last, Py_ssize_t count) noexcept nogil:
        """Update the values in the panels first .. last; each is computed alone, so how they are cut changes no bit."""
        cdef Py_ssize_t k, begin, end
        cdef Part *part
        for k in range(count):
            part = &self.parts[k]
            begin, end = value_at(part, first), value_at(part, last)
            if begin >= end:
                continue
            if part.single:
                self.of_float32.update_part(part, begin, end, self.adam)
            else:
                self.of_float64.update_part(part, begin, end, self.adam)


cdef inline Py_ssize_t value_at(const Part *part, Py_ssize_t panel) noexcept nogil:
    """Which of a tensor's values comes first in that panel of all tensors, as near as it has one."""
    return min(part.n, WIDEST_PANEL * max(panel - part.first, 0))


cdef inline void *address(tensor) except? NULL:
    return <void *><uintptr_t>tensor.data_ptr()
