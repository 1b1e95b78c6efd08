# What every model offers the loop.

cdef class Gate:
    """Who is at work on a model: one run at a time.  The loops of all its trainers look before each move."""
    cdef readonly object run        # (what, Python thread), or None

    def close(self, str what not None):
        """Enter a run, and return True; False where the caller's thread is in lr_find, which the run is a part of.

        Raises OrderError where another run is at work.
        """
        if self.run is not None:
            self.check(what)
            return False
        self.run = (what, get_ident())
        return True

    def __reduce__(self):
        return not_copied(self)

    def open(self):
        self.run = None

    def check(self, str what not None):
        """Raise OrderError where a run is at work, and `what` is no part of it."""
        if self.run is not None and self.run != ("lr_find()", get_ident()):
            refuse(what, f"{self.run[0]} is running on this model")

    def check_whole(self, str what not None):
        """Raise OrderError where a run is at work in another thread: between two steps it is not seen from there."""
        if self.run is not None and self.run[1] != get_ident():
            refuse(what, f"{self.run[0]} is running on this model in another thread")


cdef class Alone:
    """A context in which one run has a model to itself.

    Compiled, since the handler of a signal, which may raise, is called between any two lines of Python: there is none
    between closing the gate and entering the context.
    """
    cdef Gate gate
    cdef str what
    cdef bint closed

    def __init__(self, Gate gate not None, str what not None):
        self.gate, self.what = gate, what

    def __enter__(self):
        self.closed = self.gate.close(self.what)

    def __exit__(self, *exception):
        if self.closed:
            self.gate.open()

    def __reduce__(self):
        return not_copied(self)


cdef class Model:
    """Parameters and gradients as flat buffers, and the two passes over them.

    A subclass says in `tensors`, a static method, the names and shapes of its tensors in the order of the buffers, and
    points into these by `places`; forward leaves in the workspace what backward needs.
    """
    cdef const double[::1] params_view      # keeps the buffers alive
    cdef double[::1] grads_view
    cdef const double *params
    cdef double *grads
    cdef readonly Py_ssize_t size
    cdef Buffer work
    cdef Py_ssize_t room                    # predictions that the workspace is laid out for, or -1
    cdef Batch batch
    cdef double *losses                     # (predictions,) of the last forward, nats
    cdef bint busy                          # whether a pass is at work; see check_free
    cdef bint add                           # whether backward adds to grads, or overwrites what is there

    def __init__(self, const double[::1] params not None, double[::1] grads not None):
        if params.shape[0] != grads.shape[0] or params.shape[0] == 0:
            raise ValueError(f"params ({params.shape[0]},) and grads ({grads.shape[0]},) must be equally long")
        self.params_view = params
        self.grads_view = grads
        self.size = params.shape[0]
        self.params = &params[0]
        self.grads = &grads[0]
        self.work = Buffer()
        self.room = -1

    def __reduce__(self):
        return not_copied(self)

    cdef dict places(self, dict tensors):
        """Where each tensor begins in the flat buffers, of a dict of name -> shape in their order."""
        cdef dict places = {}
        at = 0
        for name, shape in tensors.items():
            places[name] = at
            n = 1
            for d in shape:
                n *= d
            at += n
        if self.size != at:
            raise ValueError(f"{at} parameters expected, got {self.size}")
        return places

    cdef void point(self, Py_ssize_t place, const double **param, double **grad) noexcept:
        """Point at a tensor and its gradient."""
        param[0], grad[0] = self.params + place, self.grads + place

    cdef int bind(self, Batch batch, Py_ssize_t predictions) except -1:
        """Take the batch that the next passes read, and make room for so many predictions."""
        raise NotImplementedError

    cdef int make_room(self, Py_ssize_t predictions) except -1:
        """Lay out the workspace for so many predictions, unless it is already."""
        if predictions != self.room:
            self.room = -1
            while self.work.lays_out():
                self.lay_out(&self.work.arena, predictions)
            self.room = predictions
        return 0

    cdef void lay_out(self, Arena *arena, Py_ssize_t predictions) noexcept nogil:
        """Take from the arena what the passes need for so many predictions."""
        pass

    cdef double forward(self) noexcept nogil:
        """The batch's loss: the weighted sum of the losses of its predictions."""
        return 0.0

    cdef void backward(self) noexcept nogil:
        """The gradient of the last forward's loss, to grads or added to them."""
        pass
