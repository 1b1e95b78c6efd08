# Softmax cross-entropy on panels: eight tokens side by side, the vocabulary downwards.
#
# The loss of a token is log(sum_v exp(l_v)) - l_target, in nats.  With m the largest logit, c how many equal it and
# r = sum over the others of exp(l_v - m), it is (m - l_target) + log1p((c - 1) + r): where the model is confident
# the sum of the others is tiny, and adding it to 1 first would lose it.  The gradient
# p_target - 1 is likewise taken from what the others add up to, not by cancellation.
#
# A large vocabulary comes in tiles, so the sums are kept in a state that further rows extend (an online
# softmax: what was summed so far is rescaled when a larger logit comes).

cdef struct Softmax:
    double[8] max       # m, the largest logit so far
    double[8] count     # c
    double[8] rest      # r
    double[8] target    # the target's logit


cdef void softmax_start(Softmax *s) noexcept nogil:
    memset(s, 0, sizeof(Softmax))
    v8_store(s.max, v8_set(-INFINITY))


cdef void softmax_add(double *logits, Py_ssize_t rows, Py_ssize_t v, const int64_t *targets, Py_ssize_t tokens,
                      Softmax *s) noexcept nogil:
    """Extend the state by logits (rows, 8), the vocabulary's ids from v on.

    logits is overwritten with exp(logits - max).  Sums go in blocks of 64, so that rounding grows with
    the square root of the number of blocks and not of V.
    """
    cdef Py_ssize_t i, block, t
    cdef v8 old = v8_load(s.max), m = old
    cdef v8 one = v8_set(1.0), zero = v8_set(0.0)
    cdef v8 x, e, count, rest, block_rest
    for t in range(tokens):
        if v <= targets[t] < v + rows:
            s.target[t] = logits[8 * (targets[t] - v) + t]
    for i in range(rows):
        m = v8_max(v8_load(logits + 8 * i), m)
    count = v8_load(s.count)
    rest = v8_load(s.rest)
    if v > 0:
        rest = v8_where_equal(old, m, rest, v8_mul(v8_add(count, rest), v8_exp(v8_sub(old, m))))
        count = v8_where_equal(old, m, count, zero)
    for block in range(0, rows, 64):
        block_rest = zero
        for i in range(block, min(block + 64, rows)):
            x = v8_load(logits + 8 * i)
            e = v8_where_equal(x, m, one, v8_exp(v8_sub(x, m)))
            v8_store(logits + 8 * i, e)
            count = v8_add(count, v8_where_equal(x, m, one, zero))
            block_rest = v8_add(block_rest, v8_where_equal(x, m, zero, e))
        rest = v8_add(rest, block_rest)
    v8_store(s.max, m)
    v8_store(s.count, count)
    v8_store(s.rest, rest)


cdef void softmax_exp(double *logits, Py_ssize_t rows, const Softmax *s) noexcept nogil:
    """logits (rows, 8) overwritten with exp(logits - max), the same bits as softmax_add left there."""
    cdef Py_ssize_t i
    cdef v8 m = v8_load(s.max), x
    for i in range(rows):
        x = v8_load(logits + 8 * i)
        v8_store(logits + 8 * i, v8_where_equal(x, m, v8_set(1.0), v8_exp(v8_sub(x, m))))


cdef void softmax_losses(const Softmax *s, Py_ssize_t tokens, double *losses) noexcept nogil:
    """losses (tokens,) of a panel whose rows have all been added; not finite where a logit forbids it."""
    cdef Py_ssize_t t
    for t in range(tokens):
        losses[t] = (s.max[t] - s.target[t]) + log1p((s.count[t] - 1.0) + s.rest[t])


cdef void softmax_grad(double *e, Py_ssize_t rows, Py_ssize_t v, const int64_t *targets, const double *weights,
                       Py_ssize_t tokens, const Softmax *s) noexcept nogil:
    """e (rows, 8) = exp(logits - max), overwritten with weights[t] d loss[t] / d logits[t].

    That is weights (softmax - one-hot).
    """
    cdef Py_ssize_t i, t
    cdef double total, others
    cdef double[8] scale
    cdef double[8] at_target
    cdef v8 factor
    memset(scale, 0, sizeof(scale))
    for t in range(tokens):
        total = s.count[t] + s.rest[t]
        scale[t] = weights[t] / total
        if v <= targets[t] < v + rows:
            if s.target[t] == s.max[t]:
                others = (s.count[t] - 1.0) + s.rest[t]
            else:
                others = total - e[8 * (targets[t] - v) + t]
            at_target[t] = -(others * scale[t])
    factor = v8_load(scale)
    for i in range(rows):
        v8_store(e + 8 * i, v8_mul(v8_load(e + 8 * i), factor))
    for t in range(tokens):
        if v <= targets[t] < v + rows:
            e[8 * (targets[t] - v) + t] = at_target[t]


cdef void cross_entropy_rows(Py_ssize_t N, Py_ssize_t V, const double *logits, const int64_t *targets, double *losses,
                             double *dlogits, double *panel) noexcept nogil:
    """losses (N,) of each row of logits (N, V), and dlogits (N, V) of their mean unless it is NULL.

    panel (V, 8) is scratch.
    """
    cdef Py_ssize_t n, t, tokens
    cdef Softmax state
    cdef double[8] weights
    for t in range(8):
        weights[t] = 1.0 / N
    for n in range(0, N, 8):
        tokens = min(N - n, 8)
        transpose_rows(logits + n * V, V, tokens, V, panel)
        softmax_start(&state)
        softmax_add(panel, V, 0, targets + n, tokens, &state)
        softmax_losses(&state, tokens, losses + n)
        if dlogits != NULL:
            softmax_grad(panel, V, 0, targets + n, weights, tokens, &state)
            transpose_panel(panel, tokens, V, dlogits + n * V, V)
