# What every model offers the loop.

cdef class Model:
    """Parameters and gradients as flat buffers, and the two passes over them.

    A subclass points into the buffers once; forward leaves in the workspace what backward needs.
    """
    cdef const double[::1] params_view      # keeps the buffers alive
    cdef double[::1] grads_view
    cdef const double *params
    cdef double *grads
    cdef readonly Py_ssize_t size
    cdef Buffer work
    cdef Batch batch
    cdef double *losses                     # (predictions,) of the last forward, nats
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

    cdef int bind(self, Batch batch, Py_ssize_t predictions) except -1:
        """Take the batch that the next passes read, and make room for so many predictions."""
        raise NotImplementedError

    cdef double forward(self) noexcept nogil:
        """The batch's loss: the weighted sum of the losses of its predictions."""
        return 0.0

    cdef void backward(self) noexcept nogil:
        """The gradient of the last forward's loss, to grads or added to them."""
        pass
