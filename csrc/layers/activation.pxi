# The activations: each is a formula on one vec and one for its derivative, which serve the panels of a transformer and
# the rows of an MLP alike.
#
# Uses: declarations, simd, layer.

cdef enum:              # in the order of ACTIVATIONS
    RELU
    TANH
    LOGISTIC
    IDENTITY

ACTIVATIONS = ("relu", "tanh", "logistic", "identity")


cdef inline vec logistic(vec x) noexcept nogil:
    """1 / (1 + exp(-x)), by way of exp(-|x|), which does not overflow; NaN stays NaN."""
    cdef vec zero = v_set(0.0), e = v_exp(v_where_less(x, zero, x, v_sub(zero, x)))
    return v_div(v_where_less(x, zero, e, v_set(1.0)), v_add(v_set(1.0), e))


cdef inline vec activation(int kind, vec x) noexcept nogil:
    """The activation of x; NaN stays NaN."""
    if kind == TANH:
        return v_tanh(x)
    if kind == LOGISTIC:
        return logistic(x)
    if kind == IDENTITY:
        return x
    return v_max(v_set(0.0), x)


cdef inline vec activation_grad(int kind, vec dy, vec y) noexcept nogil:
    """dy times the derivative, which follows from y, the activation's result."""
    if kind == TANH:
        return v_mul(dy, v_sub(v_set(1.0), v_mul(y, y)))
    if kind == LOGISTIC:
        return v_mul(dy, v_mul(y, v_sub(v_set(1.0), y)))
    if kind == IDENTITY:
        return dy
    return v_where_less(v_set(0.0), y, dy, v_set(0.0))


cdef void activation_forward(int kind, real *h, Py_ssize_t D) noexcept nogil:
    """h (D, PANEL) overwritten with its activation."""
    cdef Py_ssize_t d
    if kind == RELU:        # a loop of its own, in which no vector asks for the kind
        for d in range(D):
            v_store(h + PANEL * d, activation(RELU, v_load(h + PANEL * d)))
        return
    for d in range(D):
        v_store(h + PANEL * d, activation(kind, v_load(h + PANEL * d)))


cdef void activation_backward(int kind, real *dh, const real *h, Py_ssize_t D) noexcept nogil:
    """dh (D, PANEL) overwritten with dh times the derivative; h (D, PANEL) is the activation's result."""
    cdef Py_ssize_t d
    for d in range(D):
        v_store(dh + PANEL * d, activation_grad(kind, v_load(dh + PANEL * d), v_load(h + PANEL * d)))


cdef void add_bias(real *z, Py_ssize_t ld, Py_ssize_t rows, const real *bias) noexcept nogil:
    """z (rows, PANEL) += bias (PANEL,)."""
    cdef Py_ssize_t n
    cdef vec b = v_load(bias)
    for n in range(rows):
        v_store(z + n * ld, v_add(v_load(z + n * ld), b))


cdef void add_bias_and_activate(int kind, real *z, Py_ssize_t ld, Py_ssize_t rows, const real *bias) noexcept nogil:
    """z (rows, PANEL) overwritten with the activation of z + bias (PANEL,)."""
    cdef Py_ssize_t n
    cdef vec b = v_load(bias)
    if kind == RELU:
        for n in range(rows):
            v_store(z + n * ld, activation(RELU, v_add(v_load(z + n * ld), b)))
        return
    for n in range(rows):
        v_store(z + n * ld, activation(kind, v_add(v_load(z + n * ld), b)))


cdef void activation_backward_rows(int kind, real *dz, const real *a, Py_ssize_t ld,
                                   Py_ssize_t rows) noexcept nogil:
    """dz (rows, PANEL) overwritten with dz times the derivative; a (rows, PANEL) is the activation's result."""
    cdef Py_ssize_t n
    for n in range(rows):
        v_store(dz + n * ld, activation_grad(kind, v_load(dz + n * ld), v_load(a + n * ld)))


cdef class Activation(Layer):
    """y overwrites x, and x's gradient overwrites y's: the derivative follows from y alone."""
    cdef int kind

    def __init__(self, Value x not None, str kind not None):
        self.kind = ACTIVATIONS.index(kind)
        self.x, self.y = x, Value(x.width)
        self.y.overwrite(x)
        self.y.grad_of = x
        self.y.read_again = True        # by the derivative

    cdef void forward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        cdef Py_ssize_t D = self.y.width
        activation_forward(self.kind, self.y.panels + PANEL * first * D, n * D)

    cdef void backward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        cdef Py_ssize_t D = self.y.width, at = PANEL * first * D
        activation_backward(self.kind, self.y.grad + at, self.y.panels + at, n * D)

    cdef void generate(self, const Tokens *b) noexcept nogil:
        activation_forward(self.kind, self.y.position, self.y.width)
