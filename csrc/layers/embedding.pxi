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
