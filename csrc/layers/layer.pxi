# What every layer of a language model offers the schedule that runs it (models/language.pxi), and what layers hand to
# one another.  All of it lies in panels: x[panel][feature][token].

cdef class Value:
    """`width` features of each token, which one layer makes and others read, and the gradient of each."""
    cdef Py_ssize_t width
    cdef Value panels_of        # whose panels these are, overwritten; or None
    cdef Value grad_of          # the same of the gradient
    cdef Value sum              # this value plus what a layer adds to it; its gradient is a part of this one's
    cdef bint by_rows           # the maker works row by row, and leaves `rows` and expects `drows`
    cdef bint in_rows           # the reader works row by row, and reads `rows` and leaves `drows`
    cdef Py_ssize_t ld          # stride of rows and drows
    cdef real *panels           # (P, width, PANEL)
    cdef real *grad             # (P, width, PANEL)
    cdef real *rows             # (N, ld) where by_rows or in_rows
    cdef real *drows            # (N, ld)
    cdef real *position         # (width, PANEL) of the position that is generated, of up to PANEL documents

    def __init__(self, Py_ssize_t width):
        self.width, self.ld = width, padded(width)

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        self.panels = self.panels_of.panels if self.panels_of is not None else take_values(arena, N, self.width)
        if self.by_rows or self.in_rows:
            self.drows = take_values(arena, N, self.ld)
            self.rows = take_values(arena, N, self.ld) if self.in_rows else self.drows

    cdef void lay_out_grad(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        self.grad = self.grad_of.grad if self.grad_of is not None else take_values(arena, N, self.width)

    cdef void lay_out_position(self, Arena *arena) noexcept nogil:
        self.position = self.panels_of.position if self.panels_of is not None else take_values(arena, PANEL, self.width)


cdef class Layer:
    """Makes the value y of the value x.  It owns what forward leaves for backward, and points to its weights.

    forward and backward work on the panels first .. first + n; `parallel`: on several threads, where nobody else
    uses them.  A layer's y.grad is what backward reads; it writes x.grad.
    """
    cdef Value x
    cdef Value y
    cdef bint across            # forward and backward read panels of other tokens: all must have come as far as this
    cdef Py_ssize_t work        # multiply-adds of forward for one token

    cdef dict tensors(self):
        """Name and shape of each of its weights, in the order of the buffers."""
        return {}

    cdef int point(self, const real *params, real *grads, dict places) except -1:
        """Find its weights in the buffers: places[name] is where a tensor begins."""
        return 0

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        """Take from the arena what forward leaves for backward, for N tokens, a whole number of panels."""
        self.y.lay_out(arena, N)

    cdef void lay_out_backward(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        """Take what only the backward pass of a block of layers needs."""
        self.y.lay_out_grad(arena, N)

    cdef void lay_out_backward_as(self, Layer other) noexcept nogil:
        """Use what another layer has taken for that, whose block is not at work at the same time."""
        self.y.grad = other.y.grad

    cdef void lay_out_position(self, Arena *arena) noexcept nogil:
        """Take what generation needs."""
        self.y.lay_out_position(arena)

    cdef void forward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        pass

    cdef void before_backward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
        """What an `across` layer makes of y.grad for other panels to read."""
        pass

    cdef void backward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        pass

    cdef void pack(self, const Tokens *b, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
        """Copy a part of the weights into the order in which backward reads them, where that pays."""
        pass

    cdef void weight_grad(self, const Tokens *b, Py_ssize_t part, Py_ssize_t parts, bint add) noexcept nogil:
        """What all tokens in order add to the gradient of a part of the weights; `add`: to what is there."""
        pass

    cdef void generate(self, const Tokens *b) noexcept nogil:
        """forward of one position of up to PANEL documents side by side: from x.position to y.position."""
        pass


cdef void panels_to_rows(const Tokens *b, Py_ssize_t first, Py_ssize_t n, Py_ssize_t D, const real *panels, real *rows,
                         Py_ssize_t ld) noexcept nogil:
    """The rows (N, ld) of n panels (P, D, PANEL)."""
    cdef Py_ssize_t p, t
    for p in range(first, first + n):
        t = PANEL * p
        transpose_panel(panels + t * D, min(b.N - t, PANEL), D, rows + t * ld, ld)
