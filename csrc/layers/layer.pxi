# What every layer of a language model offers the schedule that runs it (models/language.pxi), and what layers pass to
# one another, in panels: x[panel][feature][token].
#
# Uses: declarations, simd, matmul.

cdef class Value:
    """What one layer writes and another reads: `width` features of each token, and their gradient.

    One layer reads a value, and writes its gradient (instead of adding to it).  Besides, a residual connection may
    overwrite the panels with a `sum`.  The reader then adds the gradient of the sum, and has copied what its backward
    needs of the panels: adds_sum says that a layer does so.
    """
    cdef Py_ssize_t width
    cdef Value panels_of        # the value whose panels this one overwrites, or None (set by `overwrite`)
    cdef Value grad_of          # the same for the gradient
    cdef Value sum              # this plus what a residual layer adds, or None; its gradient is part of this one's
    cdef bint overwritten       # whether another value overwrites its panels
    cdef bint read_again        # the layer that makes it reads its panels in backward: none may overwrite them
    cdef bint by_rows           # the layer that makes it also writes `rows`, and reads `drows`
    cdef bint in_rows           # the layer that reads it also reads `rows`, and writes `drows`
    cdef Py_ssize_t ld          # stride of rows and drows
    cdef real *panels           # (P, width, PANEL)
    cdef real *grad             # (P, width, PANEL)
    cdef real *rows             # (N, ld) where by_rows or in_rows; the same memory as drows unless in_rows
    cdef real *drows            # (N, ld) the gradient of rows
    cdef real *position         # (width, PANEL) for generation: one position of up to PANEL documents

    def __init__(self, Py_ssize_t width):
        self.width, self.ld = width, padded(width)

    cdef int overwrite(self, Value x) except -1:
        """Use the panels of x, which nobody may need in backward but one who has copied them."""
        if x.read_again:
            raise ValueError("panels that backward of the layer that made them reads again cannot be overwritten")
        self.panels_of, x.overwritten = x, True
        return 0

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
    """Makes the value y from the value x.  It owns what forward saves for backward, and points to its weights.

    forward writes y, backward reads y's gradient and writes x's, both for the panels first .. first + n.  With
    `parallel` they may use several threads; otherwise the schedule has given each thread panels of its own.
    """
    cdef readonly Value x       # None for an embedding, which reads ids
    cdef readonly Value y       # None for a head, which computes losses
    cdef bint across            # whether it reads panels of other tokens, which must all be finished when it begins
    cdef bint adds_sum          # whether backward adds the gradient of x.sum, where there is one, to x's
    cdef Py_ssize_t work        # multiply-adds of its products with weights in forward, for one token

    cdef dict tensors(self):
        """The shape of each of its weights by name, in the order of the flat buffers."""
        return {}

    cdef int point(self, const real *params, real *grads, dict places) except -1:
        """Point to its weights and their gradients in the flat buffers: places[name] is where a tensor begins."""
        return 0

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        """Take from the arena what forward writes and saves, for N tokens (a multiple of PANEL)."""
        self.y.lay_out(arena, N)

    cdef void lay_out_backward(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        """Take what only backward needs."""
        self.y.lay_out_grad(arena, N)

    cdef void lay_out_backward_as(self, Layer other) noexcept nogil:
        """Point to what that layer of another block has taken for backward, which goes through one block at a time."""
        self.y.grad = other.y.grad

    cdef void lay_out_position(self, Arena *arena) noexcept nogil:
        """Take what generation needs."""
        self.y.lay_out_position(arena)

    cdef void forward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        pass

    cdef void before_backward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
        """What an `across` layer computes from y's gradient before any panel's backward, which may read it.

        It is called for every layer just below a phase (models/language.pxi), `across` or not.
        """
        pass

    cdef void backward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        pass

    cdef void pack(self, const Tokens *b, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
        """Copy a part of the weights into the order in which backward reads them, where that saves time.

        It is not called for PACK_TOKENS tokens (linear.pxi) or fewer.
        """
        pass

    cdef void weight_grad(self, const Tokens *b, Py_ssize_t part, Py_ssize_t parts, bint add) noexcept nogil:
        """The gradient of a part of the weights, summed over all tokens in order; with `add`, += instead of =."""
        pass

    cdef void generate(self, const Tokens *b) noexcept nogil:
        """forward for one position of up to PANEL documents side by side, from x.position to y.position."""
        pass


cdef void panels_to_rows(const Tokens *b, Py_ssize_t first, Py_ssize_t n, Py_ssize_t D, const real *panels, real *rows,
                         Py_ssize_t ld) noexcept nogil:
    """rows (N, ld) of the panels first .. first + n of panels (P, D, PANEL)."""
    cdef Py_ssize_t p, t
    for p in range(first, first + n):
        t = PANEL * p
        transpose_panel(panels + t * D, min(b.N - t, PANEL), D, rows + t * ld, ld)
