# Causal attention over documents packed end to end, on panels.
#
# The eight queries of a panel look at the panels from the one where the first query's document begins up to their
# own; a mask hides what belongs to another document or comes later.  Scores lie keys downwards and queries side by
# side, so the softmax needs no sum across lanes, and each of the six products is a register tile that reads
# the panels as they are.  A lane past the last token sees itself alone, and holds zeros.
#
# One head: q, k and v are its `size` rows of a panel, (size, 8); the same rows of the next panel lie `stride` further.
# p (panels of keys, 8 keys, 8 queries) are the weights.

cdef inline Py_ssize_t first_key_panel(const Tokens *b, Py_ssize_t p) noexcept nogil:
    """The panel in which the document of panel p's first token begins."""
    return (8 * p - b.positions[8 * p]) >> 3


cdef void attention_forward(const Tokens *b, Py_ssize_t panel, const double *q, const double *k, const double *v,
                            Py_ssize_t stride, Py_ssize_t size, double *p, double *a) noexcept nogil:
    """p and a (size, 8) of the queries of `panel`; q of this panel, k and v of panel 0."""
    cdef Py_ssize_t first = first_key_panel(b, panel), keys = panel + 1 - first, start, s, t, n
    cdef v8 scale = v8_set(1.0 / sqrt(<double>size)), hidden = v8_set(-INFINITY)
    cdef v8 begin, end, at, x, m = hidden, total = v8_set(0.0)
    cdef double[8] lower
    cdef double[8] upper
    for t in range(8):                  # lane t sees the keys lower[t]..upper[t], counted from the first panel's
        n = 8 * panel + t
        upper[t] = <double>(n - 8 * first)
        lower[t] = upper[t] - <double>b.positions[n] if n < b.N else upper[t]
    begin = v8_load(lower)
    end = v8_load(upper)
    for s in range(keys):
        fl_tiles(8, 8, size, k + (first + s) * stride, 1, 8, 64, q, 8, 0, p + 64 * s, 8, False)
    # The first document's first key may stand inside its panel: nothing looks at those before it.
    start = 8 * panel - b.positions[8 * panel] - 8 * first
    memset(p, 0, 64 * start)
    for s in range(start, 8 * keys):
        at = v8_set(<double>s)
        x = v8_mul(v8_load(p + 8 * s), scale)
        x = v8_where_less(at, begin, hidden, v8_where_less(end, at, hidden, x))
        v8_store(p + 8 * s, x)
        m = v8_max(x, m)
    for s in range(start, 8 * keys):
        x = v8_exp(v8_sub(v8_load(p + 8 * s), m))
        v8_store(p + 8 * s, x)
        total = v8_add(total, x)
    total = v8_div(v8_set(1.0), total)
    for s in range(start, 8 * keys):
        v8_store(p + 8 * s, v8_mul(v8_load(p + 8 * s), total))
    matmul(size, 8, 8 * keys, v + first * stride, 8, 1, stride, p, 8, a, 8, False)


cdef void attention_dq(const Tokens *b, Py_ssize_t panel, const double *da, const double *k, const double *v,
                       Py_ssize_t stride, Py_ssize_t size, const double *p, const double *sums,
                       double *dq) noexcept nogil:
    """dq (size, 8) of the queries of `panel`; da and p of this panel, k and v of panel 0; sums (8,) = sum_d da a."""
    cdef Py_ssize_t first = first_key_panel(b, panel), kp, s
    cdef v8 scale = v8_set(1.0 / sqrt(<double>size)), sum_ = v8_load(sums), x
    cdef double[64] ds
    for kp in range(first, panel + 1):
        fl_tiles(8, 8, size, v + kp * stride, 1, 8, 64, da, 8, 0, ds, 8, False)
        for s in range(8):
            x = v8_mul(v8_sub(v8_load(ds + 8 * s), sum_), scale)
            v8_store(ds + 8 * s, v8_mul(x, v8_load(p + 64 * (kp - first) + 8 * s)))
        fl_tiles(size, 8, 8, k + kp * stride, 8, 1, 8, ds, 8, 0, dq, 8, kp > first)


cdef void attention_dkv(const Tokens *b, Py_ssize_t panel, Py_ssize_t panels, const double *q, const double *da,
                        Py_ssize_t stride, Py_ssize_t da_stride, const double *v, Py_ssize_t size,
                        const double *p, Py_ssize_t p_stride, const double *sums, Py_ssize_t sums_stride,
                        double *dk, double *dv) noexcept nogil:
    """dk and dv (size, 8) of the keys of `panel`; v of this panel; q, da, p and sums of panel 0.

    The queries that look at these keys stand in this panel and in those after it, until one begins with a later
    document.  Here the keys lie side by side, so each block of p is turned round.
    """
    cdef Py_ssize_t qp = panel, first, t
    cdef v8 scale = v8_set(1.0 / sqrt(<double>size)), x
    cdef double[64] pt                  # (8 queries, 8 keys)
    cdef double[64] dst
    while qp < panels:
        first = first_key_panel(b, qp)
        if first > panel:
            break
        transpose_panel(p + qp * p_stride + 64 * (panel - first), 8, 8, pt, 8)
        fl_tiles(8, 8, size, da + qp * da_stride, 1, 8, 64, v, 8, 0, dst, 8, False)
        for t in range(8):
            x = v8_sub(v8_load(dst + 8 * t), v8_set(sums[qp * sums_stride + t]))
            v8_store(dst + 8 * t, v8_mul(v8_mul(x, scale), v8_load(pt + 8 * t)))
        fl_tiles(size, 8, 8, q + qp * stride, 8, 1, 8, dst, 8, 0, dk, 8, qp > panel)
        fl_tiles(size, 8, 8, da + qp * da_stride, 8, 1, 8, pt, 8, 0, dv, 8, qp > panel)
        qp += 1


cdef void attention_cached(const double *q, const double *kv, Py_ssize_t D, Py_ssize_t keys, Py_ssize_t size, double *p,
                           double *a) noexcept nogil:
    """a (size, 8) of q (size, 8), for eight documents side by side, all with `keys` positions.

    kv (keys, 2 D, 8) holds the keys and, D rows further, the values.  Each lane is a document of its own, so
    nothing is a matrix product; the sums go in attention_forward's order.
    """
    cdef v8 scale = v8_set(1.0 / sqrt(<double>size)), m = v8_set(-INFINITY), total = v8_set(0.0), x
    cdef Py_ssize_t s, d
    for s in range(keys):
        x = v8_set(0.0)
        for d in range(size):
            x = v8_fma(v8_load(kv + 16 * s * D + 8 * d), v8_load(q + 8 * d), x)
        x = v8_mul(x, scale)
        v8_store(p + 8 * s, x)
        m = v8_max(x, m)
    for s in range(keys):
        x = v8_exp(v8_sub(v8_load(p + 8 * s), m))
        v8_store(p + 8 * s, x)
        total = v8_add(total, x)
    total = v8_div(v8_set(1.0), total)
    for s in range(keys):
        v8_store(p + 8 * s, v8_mul(v8_load(p + 8 * s), total))
    for d in range(size):
        x = v8_set(0.0)
        for s in range(keys):
            x = v8_fma(v8_load(kv + 16 * s * D + 8 * (D + d)), v8_load(p + 8 * s), x)
        v8_store(a + 8 * d, x)
