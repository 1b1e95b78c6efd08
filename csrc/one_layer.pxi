# One layer alone, forward and backward, for tests/test_layers.py: rows in, panels inside, rows out.  The arrays come as
# the addresses of C-contiguous float64, and nothing is checked.

cdef int to_panels(Buffer memory, double **panels, size_t rows, Py_ssize_t N, Py_ssize_t D) except -1:
    """panels (P, D, 8) of rows (N, D)."""
    cdef Py_ssize_t n
    panels[0] = <double *>memory.array(times(round8(N), D), sizeof(double))
    for n in range(0, N, 8):
        transpose_rows(<double *>rows + n * D, D, min(N - n, 8), D, panels[0] + n * D)
    return 0


cdef void to_rows(const double *panels, size_t rows, Py_ssize_t N, Py_ssize_t D) noexcept nogil:
    cdef Py_ssize_t n
    for n in range(0, N, 8):
        transpose_panel(panels + n * D, min(N - n, 8), D, <double *>rows + n * D, D)


def one_activation(str kind not None, Py_ssize_t N, Py_ssize_t D, size_t x, size_t y, size_t dy, size_t dx):
    """y and dx (N, D) of x and dy (N, D)."""
    cdef Buffer h_memory = Buffer(), dh_memory = Buffer()
    cdef double *h = NULL
    cdef double *dh = NULL
    cdef int code = ACTIVATIONS.index(kind)
    to_panels(h_memory, &h, x, N, D)
    to_panels(dh_memory, &dh, dy, N, D)
    activation_forward(code, h, tiles(N, 8) * D)
    to_rows(h, y, N, D)
    activation_backward(code, dh, h, tiles(N, 8) * D)
    to_rows(dh, dx, N, D)


def one_rmsnorm(Py_ssize_t N, Py_ssize_t D, size_t x, size_t y, size_t dy, size_t dx):
    """y and dx (N, D) of x and dy (N, D)."""
    cdef Buffer x_memory = Buffer(), dx_memory = Buffer(), scale_memory = Buffer()
    cdef double *panels = NULL
    cdef double *grads = NULL
    cdef double *scale = <double *>scale_memory.array(round8(N), sizeof(double))
    cdef Py_ssize_t n
    to_panels(x_memory, &panels, x, N, D)
    to_panels(dx_memory, &grads, dy, N, D)
    for n in range(0, N, 8):
        rmsnorm_forward(panels + n * D, D, panels + n * D, scale + n)
        rmsnorm_backward(grads + n * D, panels + n * D, scale + n, D, NULL, grads + n * D)
    to_rows(panels, y, N, D)
    to_rows(grads, dx, N, D)


def one_linear(Py_ssize_t N, Py_ssize_t D, Py_ssize_t out, bint pack, size_t W, size_t x, size_t y, size_t dy,
               size_t dx, size_t dW):
    """y (N, out), dx (N, D) and dW (out, D) of W (out, D), x (N, D) and dy (N, out); `pack`: W is packed for dx."""
    cdef Buffer x_memory = Buffer(), y_memory = Buffer(), work = Buffer()
    cdef double *panels = NULL
    cdef double *grads = NULL
    cdef double *strips = NULL
    cdef double *packed = NULL
    cdef double *outputs = NULL
    cdef double *inputs = NULL
    cdef Py_ssize_t P = tiles(N, 8), p
    to_panels(x_memory, &panels, x, N, D)
    to_panels(y_memory, &grads, dy, N, out)
    while work.lays_out():
        outputs = take_values(&work.arena, 8 * P, out)
        inputs = take_values(&work.arena, 8 * P, D)
        strips = take_values(&work.arena, 8 * P, round8(D))
        packed = take_packed(&work.arena, out, D)
    linear_forward(<double *>W, out, D, panels, outputs, P, False, True)
    to_rows(outputs, y, N, out)
    pack_columns(<double *>W, out, D, 0, D, packed)
    linear_dx(<double *>W, packed if pack else NULL, out, D, grads, inputs, P, True)
    to_rows(inputs, dx, N, D)
    for p in range(P):
        transpose_strips(panels + 8 * p * D, D, strips + 64 * p, 64 * P)
    linear_dw(grads, out, 0, out, N, strips, 64 * P, D, <double *>dW, False)
