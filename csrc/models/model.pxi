# What every model offers the training loop: the abstract models, and the gate that lets in one run at a time.
#
# Uses: declarations, floats, threads.

cdef object get_ident       # hides it from the module's public names, which every engine takes over
from _thread import get_ident

cdef class Gate:
    """Which run is at work on a model: one at a time.  The loops of all its trainers check it before each move."""
    cdef readonly object run        # (what, Python thread), or None
    cdef object passed              # the compiled passes of a user's own model whose forward was called last

    def close(self, str what not None):
        """Begin a run, and return True; False where the calling thread is in lr_find, of which the run is a part.

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
        """Raise OrderError where a run is at work in another thread."""
        if self.run is not None and self.run[1] != get_ident():
            refuse(what, f"{self.run[0]} is running on this model in another thread")


cdef class Alone:
    """A context in which one run has a model to itself.

    It is compiled because a signal's handler, which may raise, can be called between any two lines of Python: here
    none can come between closing the gate and entering the context.
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

    The static method `tensors` of a subclass returns the shapes of its tensors by name, in the order of the buffers;
    `places` then says where each begins.  forward saves in the workspace what backward needs.
    """

    def __init__(self, Kernels kernels not None, params, grads):
        cdef Floats params_ = kernels.vector(params, False), grads_ = kernels.vector(grads, True)
        if params_.rows != grads_.rows or params_.rows == 0:
            raise ValueError(f"params ({params_.rows},) and grads ({grads_.rows},) must be equally long")
        self.kernels = kernels
        self.arrays = (params_, grads_)
        self.size = params_.rows
        self.params = params_.data
        self.grads = grads_.data
        self.work = Buffer()
        self.room = -1

    def __reduce__(self):
        return not_copied(self)

    cdef dict places(self, dict tensors):
        """Where each tensor begins in the flat buffers, by name; tensors: their shapes by name, in order."""
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

    cdef int bind(self, Batch batch, Py_ssize_t predictions) except -1:
        """Set the batch that the next passes read, and lay out the workspace for so many predictions."""
        raise NotImplementedError

    cdef int make_room(self, Py_ssize_t predictions) except -1:
        """Lay out the workspace for so many predictions, unless it is so already."""
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
        """The gradient of the last forward's loss, written to grads, or with `add` added to them."""
        pass

    cdef double total_loss(self) noexcept:
        """The sum of the last forward's losses, each prediction weighing 1."""
        return weighted_sum(self.losses, NULL, self.batch.n_predictions)

    cdef void fail(self, failure) noexcept:
        """Keep what a pass has raised: a loop ends its step, and then calls raise_failure."""
        self.failed, self.failure = True, failure

    cdef int raise_failure(self) except -1:
        if self.failed:
            failure, self.failed, self.failure = self.failure, False, None
            raise failure
        return 0


cdef class LanguageModel(Model):
    """A model of V ids and up to T positions, with D features each."""

    def logits_of(self, Batch batch not None, logits):
        """Write logits (N, V) of a batch's predictions.  What the last forward saved for backward is lost."""
        cdef Py_ssize_t N = batch.n_predictions
        cdef Floats out = self.kernels.matrix(logits, True)
        check_free("logits_of()", self.busy)
        self.bind(batch, N)
        if out.rows != N or out.columns != self.V:
            raise ValueError(f"logits has shape ({out.rows}, {out.columns}); expected ({N}, {self.V})")
        self.busy = True
        with nogil:
            self.forward()
            self.write_logits(out.data)
        self.busy = False

    cdef void write_logits(self, void *logits) noexcept nogil:
        """logits (N, V) of the last forward's batch."""
        pass

    def generate_step(self, const int64_t[::1] tokens not None, Py_ssize_t position, logits):
        """Write logits (B, V) of what follows `tokens` (B,), the ids at `position` of up to PANEL documents.

        Called for the positions 0, 1, ... in turn: the keys and values of earlier positions are kept, so a call
        computes one position only.  The logits have the same bits as those of the forward pass.
        """
        cdef Py_ssize_t B = tokens.shape[0], b
        cdef Floats out = self.kernels.matrix(logits, True)
        if not 1 <= B <= panel_of(self.kernels.itemsize):
            raise ValueError(f"{B} tokens; 1 to {panel_of(self.kernels.itemsize)} documents go side by side")
        if out.rows != B or out.columns != self.V:
            raise ValueError(f"logits has shape ({out.rows}, {out.columns}), not ({B}, {self.V})")
        if not 0 <= position < self.T:
            raise IndexError(f"position = {position} is outside [0, {self.T})")
        if position > self.cached:
            raise ValueError(f"position = {position} follows {position - 1}; only {self.cached} positions were given")
        for b in range(B):
            if not 0 <= tokens[b] < self.V:
                raise IndexError(f"tokens[{b}] = {tokens[b]} is outside [0, {self.V})")
        check_free("generate_step()", self.busy)
        self.prepare_generation()
        self.busy = True
        with nogil:
            self.generate(&tokens[0], B, position, out.data)
        self.busy = False
        self.cached = position + 1

    cdef int prepare_generation(self) except -1:
        """Lay out the workspace of generate."""
        raise NotImplementedError

    cdef void generate(self, const int64_t *tokens, Py_ssize_t B, Py_ssize_t position, void *logits) noexcept nogil:
        """The forward pass of one position of B documents; logits (B, V)."""
        pass


cdef class ArrayModel(Model):
    """A model of rows of numbers."""

    def predict(self, ArrayBatch batch not None, out):
        """out (N, n_out) overwritten with the last layer's outputs for the batch: values, or logits."""
        cdef Py_ssize_t N = batch.n_examples
        cdef Floats out_ = self.kernels.matrix(out, True)
        if out_.rows != N or out_.columns != self.n_out:
            raise ValueError(f"out ({out_.rows}, {out_.columns}) must be ({N}, {self.n_out})")
        check_free("predict()", self.busy)
        self.bind_inputs(batch, batch.n_predictions)
        self.busy = True
        with nogil:
            self.write_outputs(out_.data)
        self.busy = False

    cdef int bind_inputs(self, Batch batch, Py_ssize_t predictions) except -1:
        """bind, for a batch that need not have a y."""
        raise NotImplementedError

    cdef void write_outputs(self, void *out) noexcept nogil:
        """out (N, n_out) of the batch that was bound."""
        pass
