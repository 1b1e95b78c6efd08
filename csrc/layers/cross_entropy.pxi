# Softmax cross-entropy on panels: tokens are lanes, the ids of the vocabulary are rows.
#
# The loss of a token is log(sum_v exp(l_v)) - l_target, in nats.  With m the largest logit, c the number of logits that
# equal it and r = sum over the others of exp(l_v - m), it is (m - l_target) + log1p((c - 1) + r): where the model is
# confident r is tiny, and adding it to 1 would lose it.  The gradient at the target, p_target - 1, is computed as minus
# the sum of the other probabilities, for the same reason.
#
# A large vocabulary comes in tiles, so the sums are a state that further rows extend (an online softmax: when a larger
# logit comes, the sum so far is rescaled).
#
# Uses: declarations, simd, matmul.

# Exponentials are summed in blocks of so many rows, so that rounding errors grow with the number of blocks, not with V.
cdef enum:
    SUM_ROWS = 64


cdef struct Softmax:
    real[PANEL] max         # m, the largest logit so far
    real[PANEL] count       # c
    real[PANEL] rest        # r
    real[PANEL] target      # the target's logit


cdef void softmax_start(Softmax *s) noexcept nogil:
    memset(s, 0, sizeof(Softmax))
    v_store(s.max, v_set(-INFINITY))


cdef void softmax_add(real *logits, Py_ssize_t rows, Py_ssize_t v, const int64_t *targets, Py_ssize_t tokens,
                      Softmax *s) noexcept nogil:
    """Extend the state by logits (rows, PANEL), those of the ids from v on, overwritten with exp(logits - max)."""
    cdef Py_ssize_t i, block, first, t
    cdef vec old = v_load(s.max), m = old
    cdef vec one = v_set(1.0), zero = v_set(0.0)
    cdef vec x, e, count, rest, block_rest
    for t in range(tokens):
        if v <= targets[t] < v + rows:
            s.target[t] = logits[PANEL * (targets[t] - v) + t]
    for i in range(rows):
        m = v_max(v_load(logits + PANEL * i), m)
    count = v_load(s.count)
    rest = v_load(s.rest)
    if v > 0:
        rest = v_where_equal(old, m, rest, v_mul(v_add(count, rest), v_exp(v_sub(old, m))))
        count = v_where_equal(old, m, count, zero)
    for block in range(tiles(rows, SUM_ROWS)):
        first = block * SUM_ROWS
        block_rest = zero
        for i in range(first, min(first + SUM_ROWS, rows)):
            x = v_load(logits + PANEL * i)
            e = v_where_equal(x, m, one, v_exp(v_sub(x, m)))
            v_store(logits + PANEL * i, e)
            count = v_add(count, v_where_equal(x, m, one, zero))
            block_rest = v_add(block_rest, v_where_equal(x, m, zero, e))
        rest = v_add(rest, block_rest)
    v_store(s.max, m)
    v_store(s.count, count)
    v_store(s.rest, rest)


cdef void softmax_exp(real *logits, Py_ssize_t rows, const Softmax *s) noexcept nogil:
    """logits (rows, PANEL) overwritten with exp(logits - max), the same bits as softmax_add left there."""
    cdef Py_ssize_t i
    cdef vec m = v_load(s.max), x
    for i in range(rows):
        x = v_load(logits + PANEL * i)
        v_store(logits + PANEL * i, v_where_equal(x, m, v_set(1.0), v_exp(v_sub(x, m))))


cdef void softmax_losses(const Softmax *s, Py_ssize_t tokens, double *losses) noexcept nogil:
    """losses (tokens,) of a panel, after all its rows; not finite where the logits give no finite loss."""
    cdef Py_ssize_t t
    for t in range(tokens):
        losses[t] = (<double>s.max[t] - s.target[t]) + log1p((s.count[t] - 1.0) + s.rest[t])


cdef void softmax_grad(real *e, Py_ssize_t rows, Py_ssize_t v, const int64_t *targets, const double *weights,
                       Py_ssize_t tokens, const Softmax *s) noexcept nogil:
    """e (rows, PANEL) = exp(logits - max), overwritten with the gradient of the weighted losses with respect to the
    logits, weights[t] (softmax - one_hot(targets[t]))."""
    cdef Py_ssize_t i, t
    cdef double total, others
    cdef real[PANEL] scale
    cdef real[PANEL] at_target
    cdef vec factor
    memset(scale, 0, sizeof(scale))
    for t in range(tokens):
        total = s.count[t] + s.rest[t]
        scale[t] = weights[t] / total
        if v <= targets[t] < v + rows:
            if s.target[t] == s.max[t]:
                others = (s.count[t] - 1.0) + s.rest[t]
            else:
                others = total - e[PANEL * (targets[t] - v) + t]
            at_target[t] = -(others * scale[t])
    factor = v_load(scale)
    for i in range(rows):
        v_store(e + PANEL * i, v_mul(v_load(e + PANEL * i), factor))
    for t in range(tokens):
        if v <= targets[t] < v + rows:
            e[PANEL * (targets[t] - v) + t] = at_target[t]


cdef void cross_entropy_rows(Py_ssize_t N, Py_ssize_t V, const real *logits, const int64_t *targets, double *losses,
                             real *dlogits, real *panel) noexcept nogil:
    """losses (N,) of each row of logits (N, V), and dlogits (N, V) of their mean unless it is NULL.

    panel (V, PANEL) is scratch.
    """
    cdef Py_ssize_t p, n, t, tokens
    cdef Softmax state
    cdef double[PANEL] weights
    for t in range(PANEL):
        weights[t] = 1.0 / N
    for p in range(tiles(N, PANEL)):
        n = PANEL * p
        tokens = min(N - n, PANEL)
        transpose_rows(logits + n * V, V, tokens, V, panel)
        softmax_start(&state)
        softmax_add(panel, V, 0, targets + n, tokens, &state)
        softmax_losses(&state, tokens, losses + n)
        if dlogits != NULL:
            softmax_grad(panel, V, 0, targets + n, weights, tokens, &state)
            transpose_panel(panel, tokens, V, dlogits + n * V, V)
