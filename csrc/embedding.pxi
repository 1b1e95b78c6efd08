# Token plus position embedding: x[n] = wte[inputs[n]] + wpe[positions[n]].

cdef void embed(const int64_t *inputs, const int64_t *positions, Py_ssize_t N, Py_ssize_t D,
                const double *wte, const double *wpe, double *x, Py_ssize_t ldx) noexcept nogil:
    """x (N, ldx) row by row: one row of wte (V, D) plus one of wpe (T, D) for each token."""
    cdef Py_ssize_t n, d
    cdef const double *token
    cdef const double *position
    cdef double *out
    for n in range(N):
        token = wte + inputs[n] * D
        position = wpe + positions[n] * D
        out = x + n * ldx
        for d in range(D):
            out[d] = token[d] + position[d]


cdef void scatter(const int64_t *ids, Py_ssize_t N, Py_ssize_t D, Py_ssize_t first, Py_ssize_t last,
                  const double *dx, Py_ssize_t ldx, double *dtable) noexcept nogil:
    """dtable[ids[n], first:last] += dx[n, first:last], n in order: an id that occurs twice adds up."""
    cdef Py_ssize_t n, d
    cdef const double *row
    cdef double *out
    for n in range(N):
        row = dx + n * ldx
        out = dtable + ids[n] * D
        for d in range(first, last):
            out[d] += row[d]


def embedding_forward(const int64_t[::1] inputs not None, const int64_t[::1] positions not None,
                      const double[:, ::1] wte not None, const double[:, ::1] wpe not None,
                      double[:, ::1] x not None):
    cdef Py_ssize_t N = inputs.shape[0], D = wte.shape[1]
    if N:
        with nogil:
            embed(&inputs[0], &positions[0], N, D, &wte[0, 0], &wpe[0, 0], &x[0, 0], D)


def embedding_backward(const int64_t[::1] inputs not None, const int64_t[::1] positions not None,
                       const double[:, ::1] dx not None, double[:, ::1] dwte not None,
                       double[:, ::1] dwpe not None):
    cdef Py_ssize_t N = inputs.shape[0], D = dwte.shape[1]
    if N:
        with nogil:
            scatter(&inputs[0], N, D, 0, D, &dx[0, 0], D, &dwte[0, 0])
            scatter(&positions[0], N, D, 0, D, &dx[0, 0], D, &dwpe[0, 0])
