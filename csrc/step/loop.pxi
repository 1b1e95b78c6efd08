# The training loop: the moves of a step one by one, and many steps in one call, with the clip.  Both call the same
# functions, but for the factor that clips by norm: by hand it multiplies the gradient itself, a run hands it to the
# optimiser, which multiplies what it reads.  The bits are the same.  fastloop/trainer.py guards the order of the moves.
#
# Uses: declarations, threads, model.

cdef class Loop:
    """A model and an optimiser over the same buffers."""
    cdef readonly Model model
    cdef readonly Optimizer optimizer
    cdef Gate gate              # of the model, or None where the loop only evaluates
    cdef Buffer memory
    cdef double *partial        # (norm_blocks,)
    cdef int64_t fills          # the batch's, when forward read it
    cdef public int64_t steps   # taken one by one and in runs; the schedule counts them, and a checkpoint sets them
    cdef readonly double loss   # of the last forward
    cdef readonly double norm   # of the last gradient, before clipping

    def __init__(self, Model model not None, Optimizer optimizer, Gate gate=None):
        self.model = model
        self.optimizer = optimizer
        self.gate = gate
        self.memory = Buffer()
        self.partial = <double *>self.memory.array(norm_blocks(model.size), sizeof(double))

    def __reduce__(self):
        return not_copied(self)

    cdef inline int enter(self, str move) except -1:
        """Raise OrderError where another thread or run is at work on the model."""
        check_free(move, self.model.busy)
        if self.gate is not None and self.gate.run is not None:
            self.gate.check(move)
        return 0

    cdef inline int check_optimizer(self) except -1:
        if self.optimizer is None:
            raise TypeError("a Loop that was made without an optimizer takes no steps")
        return 0

    def zero_grad(self):
        self.enter("zero_grad()")
        self.zero()

    def clear(self):
        """zero_grad, for a run that has closed the gate."""
        check_free("a run", self.model.busy)
        self.zero()

    cdef inline void zero(self) noexcept:
        self.model.busy = True
        with nogil:
            memset(self.model.grads, 0, self.model.size * self.model.kernels.itemsize)
        self.model.busy = False

    cdef int bind(self, Batch batch) except -1:
        try:
            return self.model.bind(batch, batch.n_predictions)
        except TypeError as error:
            raise TypeError(f"forward takes a batch, as this trainer's batch(...) makes it, got {type(batch).__name__} "
                            f"({error})") from error

    def forward(self, given):
        cdef Batch batch
        if not isinstance(given, Batch):
            raise TypeError("forward takes a batch, as this trainer's batch(...) makes it, got "
                            f"{type(given).__name__}")
        batch = <Batch>given
        self.enter("forward()")
        self.bind(batch)
        if batch.n_predictions == 0:
            raise ValueError("the batch is empty: it has taken no examples")
        self.fills = batch.fills
        self.model.busy = True
        batch.readers += 1
        with nogil:
            self.loss = self.model.forward()
        batch.readers -= 1
        self.model.busy = False
        self.model.raise_failure()
        return self.loss

    def backward(self):
        cdef Batch batch = self.model.batch
        self.enter("backward()")
        if batch is None or batch.fills != self.fills:
            from fastloop.errors import OrderError

            raise OrderError("backward() was called after take() has filled the batch anew, expected forward() of it")
        self.model.busy = self.model.add = True
        batch.readers += 1
        with nogil:
            self.model.backward()
        batch.readers -= 1
        self.model.busy = False
        self.model.raise_failure()

    def grad_norm(self):
        self.enter("clipping or step()")
        self.model.busy = True
        with nogil:
            self.norm = self.model.kernels.norm2(self.model.grads, self.model.size, self.partial)
        self.model.busy = False
        return self.norm

    def scale_grads(self, double scale):
        self.enter("clipping or step()")
        self.model.busy = True
        with nogil:
            self.model.kernels.scale(self.model.grads, self.model.size, scale)
        self.model.busy = False

    def clip_value(self, double limit):
        """Bring every gradient into [-limit, limit]; return how many were outside."""
        cdef Py_ssize_t outside
        self.enter("clip_grad_value()")
        self.model.busy = True
        with nogil:
            outside = self.model.kernels.clip_values(self.model.grads, self.model.size, limit)
        self.model.busy = False
        return outside

    def step(self, double lr, double norm=-1.0):
        """Take one step from the gradients; norm: their norm, where it is known.

        Return None; or the norm, where the step was not taken, since it would have written something not finite.
        """
        cdef bint stepped
        self.check_optimizer()
        self.enter("step()")
        check_free("step()", self.optimizer.busy)
        self.model.busy = self.optimizer.busy = True
        self.optimizer.param = INFINITY
        with nogil:
            if norm < 0.0:
                norm = self.model.kernels.norm2(self.model.grads, self.model.size, self.partial)
            stepped = norm <= self.model.kernels.squarable and self.optimizer.update(lr, 1.0, norm)  # Adam squares it
        self.steps += stepped
        self.model.busy = self.optimizer.busy = False
        return None if stepped else norm

    def total_loss(self):
        """The sum of the last forward's losses, each prediction weighing 1."""
        return self.model.total_loss()

    def run(self, Batch batch not None, const int64_t[::1] indices not None, const int64_t[::1] splits not None,
            int accumulate, const double[::1] lrs not None, double clip_norm, double[::1] losses not None,
            double[::1] norms not None, double clip_value=INFINITY, unsigned char[::1] clipped=None):
        """Take len(lrs) steps; return how many were completed.

        Step s takes the micro-batches s * accumulate .. (s + 1) * accumulate; micro-batch j holds the examples
        indices[splits[j] : splits[j + 1]].  losses[s] and norms[s] (before clipping) are written for every step begun.
        A loss or norm that is not finite ends the run before a parameter is written, and so does a learning rate with
        which a parameter or a moment would not be finite, and what a pass raises, which is then raised.  The first
        micro-batch of a step overwrites the gradients, which spares a pass that zeroes them; they are zero in the end.

        clip_norm and clip_value are inf for none.  With both, clip_norm refers to the norm before clipping by value.
        clipped[s], where given, becomes 1 where a gradient was clipped, else 0.
        """
        cdef Py_ssize_t steps = lrs.shape[0], s, j, outside, longest = 0
        cdef double total, loss = 0.0, norm = 0.0, scale, largest
        cdef bint finite = True
        self.check_optimizer()
        if splits.shape[0] != steps * accumulate + 1 or splits[splits.shape[0] - 1] > indices.shape[0]:
            raise ValueError(f"{splits.shape[0]} splits of {indices.shape[0]} examples for {steps} steps")
        if losses.shape[0] < steps or norms.shape[0] < steps:
            raise ValueError(f"losses ({losses.shape[0]}) and norms ({norms.shape[0]}) must hold {steps} steps")
        if clipped is not None and clipped.shape[0] < steps:
            raise ValueError(f"clipped ({clipped.shape[0]}) must hold {steps} steps")
        for s in range(steps):
            if splits[(s + 1) * accumulate] <= splits[s * accumulate]:
                raise ValueError(f"step {s} has no examples")
        for j in range(splits.shape[0] - 1):
            longest = max(longest, splits[j + 1] - splits[j])
        check_free("a run", self.model.busy or self.optimizer.busy)
        self.model.bind(batch, batch.reserve(longest))
        self.model.busy = self.optimizer.busy = True
        s = 0
        self.optimizer.param = INFINITY
        with nogil:
            while s < steps:
                total = <double>(splits[(s + 1) * accumulate] - splits[s * accumulate])
                loss = 0.0
                self.model.add = False
                for j in range(s * accumulate, (s + 1) * accumulate):
                    if splits[j + 1] == splits[j]:
                        continue
                    batch.fill(&indices[splits[j]], splits[j + 1] - splits[j], total)
                    loss += self.model.forward()
                    finite = isfinite(loss)
                    if not finite:
                        break
                    self.model.backward()
                    if self.model.failed:
                        loss, finite = NAN, False
                        break
                    self.model.add = True
                losses[s] = loss
                norm = loss
                if finite:
                    norm = self.model.kernels.norm2(self.model.grads, self.model.size, self.partial)
                norms[s] = norm
                scale = clip_norm / norm if norm > clip_norm else 1.0
                largest = min(norm * scale, clip_value)     # a bound on the values of the gradient
                # The square, too, must be finite: Adam squares the gradient.
                if not (isfinite(norm) and largest <= self.model.kernels.squarable):
                    break
                outside = 0
                if clip_value < INFINITY:
                    outside = self.model.kernels.clip_values(self.model.grads, self.model.size, clip_value)
                if clipped is not None:
                    clipped[s] = outside > 0 or norm > clip_norm
                if not self.optimizer.update(lrs[s], scale, largest):
                    break
                s += 1
                self.steps += 1
            memset(self.model.grads, 0, self.model.size * self.model.kernels.itemsize)
        self.model.busy = self.optimizer.busy = False
        self.loss, self.norm = loss, norm
        self.model.raise_failure()
        return s
