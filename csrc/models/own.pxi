# A model of the user's own: its passes are two functions of Python, called with the GIL from the same loops as the
# compiled passes of the others.
#
# Uses: declarations, any, model.

cdef class OwnModel(Model):
    """forward(X, y, weights) returns the loss of those rows, and backward() adds its gradient to the gradients.

    An exception in either is kept, and raised where the loop returns; the step has ended by then.
    """
    cdef object forward_of
    cdef object backward_of
    cdef Gate gate              # knows the last of the model's forward passes, since what they save is the model's
    cdef double loss

    def __init__(self, Kernels kernels not None, params, grads, forward, backward, Gate gate not None):
        Model.__init__(self, kernels, params, grads)
        self.forward_of, self.backward_of, self.gate = forward, backward, gate

    cdef int bind(self, Batch batch, Py_ssize_t predictions) except -1:
        self.batch = <AnyBatch?>batch
        return 0

    cdef double forward(self) noexcept nogil:
        with gil:
            self.gate.passed = self
            try:
                self.loss = loss_of(self.forward_of(*(<AnyBatch>self.batch).rows()))
            except BaseException as error:
                self.fail(error)
        return NAN if self.failed else self.loss

    cdef void backward(self) noexcept nogil:
        if not self.add:
            memset(self.grads, 0, self.size * self.kernels.itemsize)
        with gil:
            try:
                if self.gate.passed is not self:
                    refuse("backward()", "the model's forward has been called since, as by evaluate(), expected a new "
                                         "forward(): what the model had saved for backward is overwritten")
                self.backward_of()
            except BaseException as error:
                self.fail(error)

    cdef double total_loss(self) noexcept:
        return self.loss * self.batch.n_predictions


cdef double loss_of(loss) except? -1.0:
    """What a forward pass returned, as a number."""
    if type(loss) is float:
        return loss
    shape = getattr(loss, "shape", ())
    if tuple(shape) != ():
        raise ValueError(f"forward returned an array of shape {tuple(shape)}, expected the loss, one number: the sum "
                         "of weights times the losses of the rows")
    try:
        return float(loss)
    except (TypeError, ValueError):
        raise TypeError(f"forward returned {loss!r:.80} of type {type(loss).__name__}, expected the loss, one "
                        "number") from None
