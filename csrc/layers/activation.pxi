# The activations: each is its formula on one v8 and that of its derivative, for the panels of a transformer and the
# rows of an MLP alike.

cdef enum:              # in the order of ACTIVATIONS
    RELU
    TANH

ACTIVATIONS = ("relu", "tanh")


cdef inline v8 activation(int kind, v8 x) noexcept nogil:
    """NaN stays NaN."""
    if kind == TANH:
        return v8_tanh(x)
    return v8_max(v8_set(0.0), x)


cdef inline v8 activation_grad(int kind, v8 dy, v8 y) noexcept nogil:
    """dy times the derivative where the activation gave y."""
    if kind == TANH:
        return v8_mul(dy, v8_sub(v8_set(1.0), v8_mul(y, y)))
    return v8_where_less(v8_set(0.0), y, dy, v8_set(0.0))


cdef void activation_forward(int kind, double *h, Py_ssize_t D) noexcept nogil:
    """h (D, 8) overwritten with its activation."""
    cdef Py_ssize_t d
    for d in range(D):
        v8_store(h + 8 * d, activation(kind, v8_load(h + 8 * d)))


cdef void activation_backward(int kind, double *dh, const double *h, Py_ssize_t D) noexcept nogil:
    """dh (D, 8) overwritten with dh times the derivative of the activation that gave h."""
    cdef Py_ssize_t d
    for d in range(D):
        v8_store(dh + 8 * d, activation_grad(kind, v8_load(dh + 8 * d), v8_load(h + 8 * d)))


cdef void add_bias(double *z, Py_ssize_t ld, Py_ssize_t rows, const double *bias) noexcept nogil:
    """z (rows, 8) += bias (8,)."""
    cdef Py_ssize_t n
    cdef v8 b = v8_load(bias)
    for n in range(rows):
        v8_store(z + n * ld, v8_add(v8_load(z + n * ld), b))


cdef void add_bias_and_activate(int kind, double *z, Py_ssize_t ld, Py_ssize_t rows, const double *bias) noexcept nogil:
    """z (rows, 8) overwritten with the activation of z + bias (8,)."""
    cdef Py_ssize_t n
    cdef v8 b = v8_load(bias)
    for n in range(rows):
        v8_store(z + n * ld, activation(kind, v8_add(v8_load(z + n * ld), b)))


cdef void activation_backward_rows(int kind, double *dz, const double *a, Py_ssize_t ld,
                                   Py_ssize_t rows) noexcept nogil:
    """dz (rows, 8) overwritten with dz times the derivative of the activation that gave a (rows, 8)."""
    cdef Py_ssize_t n
    for n in range(rows):
        v8_store(dz + n * ld, activation_grad(kind, v8_load(dz + n * ld), v8_load(a + n * ld)))
