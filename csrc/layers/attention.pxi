# Causal attention over documents packed end to end, on panels.
#
# The queries of a panel attend to the panels from the one in which the first query's document begins up to their own; a
# mask hides the keys of other documents and later ones.  Scores have keys as rows and queries as lanes, so the softmax
# needs no sum across lanes, and each of the six products is a register tile that reads the panels as they are.  A lane
# past the last token attends to itself alone, and holds zeros.
#
# The functions compute one head: q, k and v (size, PANEL) are its rows of a panel, and the same rows of the next panel
# are `stride` values further.  p (panels of keys, PANEL keys, PANEL queries) are the attention weights.
#
# Uses: declarations, simd, matmul, layer.

cdef inline Py_ssize_t first_key_panel(const Tokens *b, Py_ssize_t p) noexcept nogil:
    """The panel in which the document of the first token of panel p begins."""
    return (PANEL * p - b.positions[PANEL * p]) // PANEL


cdef void attention_forward(const Tokens *b, Py_ssize_t panel, const real *q, const real *k, const real *v,
                            Py_ssize_t stride, Py_ssize_t size, real *p, real *a) noexcept nogil:
    """Write the weights p and the outputs a (size, PANEL) of the queries of `panel`.

    q points to this panel, k and v to panel 0.
    """
    cdef Py_ssize_t first = first_key_panel(b, panel), keys = panel + 1 - first, start, s, t, n
    cdef vec scale = v_set(1.0 / sqrt(<double>size)), hidden = v_set(-INFINITY)
    cdef vec begin, end, at, x, m = hidden, total = v_set(0.0)
    cdef real[PANEL] lower
    cdef real[PANEL] upper
    for t in range(PANEL):              # lane t attends to the keys lower[t]..upper[t], counted from the first panel's
        n = PANEL * panel + t
        upper[t] = <real>(n - PANEL * first)
        lower[t] = upper[t] - <real>b.positions[n] if n < b.N else upper[t]
    begin = v_load(lower)
    end = v_load(upper)
    for s in range(keys):
        fl_tiles(PANEL, PANEL, size, k + (first + s) * stride, 1, PANEL, BLOCK, q, PANEL, 0, p + BLOCK * s, PANEL, 0,
                 False)
    # The first document may begin inside its panel: no query attends to the keys before it.
    start = PANEL * panel - b.positions[PANEL * panel] - PANEL * first
    memset(p, 0, PANEL * start * sizeof(real))
    for s in range(start, PANEL * keys):
        at = v_set(<real>s)
        x = v_mul(v_load(p + PANEL * s), scale)
        x = v_where_less(at, begin, hidden, v_where_less(end, at, hidden, x))
        v_store(p + PANEL * s, x)
        m = v_max(x, m)
    for s in range(start, PANEL * keys):
        x = v_exp(v_sub(v_load(p + PANEL * s), m))
        v_store(p + PANEL * s, x)
        total = v_add(total, x)
    total = v_div(v_set(1.0), total)
    for s in range(start, PANEL * keys):
        v_store(p + PANEL * s, v_mul(v_load(p + PANEL * s), total))
    matmul(size, PANEL, PANEL * keys, v + first * stride, PANEL, 1, stride, p, PANEL, a, PANEL, False)


cdef void attention_dq(const Tokens *b, Py_ssize_t panel, const real *da, const real *k, const real *v,
                       Py_ssize_t stride, Py_ssize_t size, const real *p, const real *sums,
                       real *dq) noexcept nogil:
    """Write dq (size, PANEL) of the queries of `panel`.

    da and p point to this panel, k and v to panel 0; sums (PANEL,) is da * a, summed over the features.
    """
    cdef Py_ssize_t first = first_key_panel(b, panel), kp, s
    cdef vec scale = v_set(1.0 / sqrt(<double>size)), sum_ = v_load(sums), x
    cdef real[BLOCK] ds
    for kp in range(first, panel + 1):
        fl_tiles(PANEL, PANEL, size, v + kp * stride, 1, PANEL, BLOCK, da, PANEL, 0, ds, PANEL, 0, False)
        for s in range(PANEL):
            x = v_mul(v_sub(v_load(ds + PANEL * s), sum_), scale)
            v_store(ds + PANEL * s, v_mul(x, v_load(p + BLOCK * (kp - first) + PANEL * s)))
        fl_tiles(size, PANEL, PANEL, k + kp * stride, PANEL, 1, PANEL, ds, PANEL, 0, dq, PANEL, 0, kp > first)


cdef void attention_dkv(const Tokens *b, Py_ssize_t panel, Py_ssize_t panels, const real *q, const real *da,
                        Py_ssize_t stride, Py_ssize_t da_stride, const real *v, Py_ssize_t size,
                        const real *p, Py_ssize_t p_stride, const real *sums, Py_ssize_t sums_stride,
                        real *dk, real *dv) noexcept nogil:
    """Write dk and dv (size, PANEL) of the keys of `panel`.  v points to this panel; q, da, p and sums to panel 0.

    The queries that attend to these keys are in this panel and in the next ones, until one begins with a later
    document.  Here the keys are the lanes, so each block of p is transposed.
    """
    cdef Py_ssize_t qp = panel, first, t
    cdef vec scale = v_set(1.0 / sqrt(<double>size)), x
    cdef real[BLOCK] pt                 # (PANEL queries, PANEL keys)
    cdef real[BLOCK] dst
    while qp < panels:
        first = first_key_panel(b, qp)
        if first > panel:
            break
        transpose_panel(p + qp * p_stride + BLOCK * (panel - first), PANEL, PANEL, pt, PANEL)
        fl_tiles(PANEL, PANEL, size, da + qp * da_stride, 1, PANEL, BLOCK, v, PANEL, 0, dst, PANEL, 0, False)
        for t in range(PANEL):
            x = v_sub(v_load(dst + PANEL * t), v_set(sums[qp * sums_stride + t]))
            v_store(dst + PANEL * t, v_mul(v_mul(x, scale), v_load(pt + PANEL * t)))
        fl_tiles(size, PANEL, PANEL, q + qp * stride, PANEL, 1, PANEL, dst, PANEL, 0, dk, PANEL, 0, qp > panel)
        fl_tiles(size, PANEL, PANEL, da + qp * da_stride, PANEL, 1, PANEL, pt, PANEL, 0, dv, PANEL, 0, qp > panel)
        qp += 1


cdef void attention_cached(const real *q, const real *kv, Py_ssize_t D, Py_ssize_t keys, Py_ssize_t size, real *p,
                           real *a) noexcept nogil:
    """Write a (size, PANEL) of q (size, PANEL), for PANEL documents side by side, all with `keys` positions.

    kv (keys, 2 D, PANEL) holds the keys and, D rows further, the values.  Each lane is another document, so there is no
    matrix product; the sums go in the order of attention_forward.
    """
    cdef vec scale = v_set(1.0 / sqrt(<double>size)), m = v_set(-INFINITY), total = v_set(0.0), x
    cdef Py_ssize_t s, d
    for s in range(keys):
        x = v_set(0.0)
        for d in range(size):
            x = v_fma(v_load(kv + 2 * PANEL * s * D + PANEL * d), v_load(q + PANEL * d), x)
        x = v_mul(x, scale)
        v_store(p + PANEL * s, x)
        m = v_max(x, m)
    for s in range(keys):
        x = v_exp(v_sub(v_load(p + PANEL * s), m))
        v_store(p + PANEL * s, x)
        total = v_add(total, x)
    total = v_div(v_set(1.0), total)
    for s in range(keys):
        v_store(p + PANEL * s, v_mul(v_load(p + PANEL * s), total))
    for d in range(size):
        x = v_set(0.0)
        for s in range(keys):
            x = v_fma(v_load(kv + 2 * PANEL * s * D + PANEL * (D + d)), v_load(p + PANEL * s), x)
        v_store(a + PANEL * d, x)


cdef void panel_dot(const real *x, const real *y, Py_ssize_t D, real *sums) noexcept nogil:
    """sums (PANEL,) = x * y, summed over the features of two panels (D, PANEL)."""
    cdef vec a = v_set(0.0)
    cdef Py_ssize_t d
    for d in range(D):
        a = v_fma(v_load(x + PANEL * d), v_load(y + PANEL * d), a)
    v_store(sums, a)


cdef class Attention(Layer):
    """x holds the queries, then the keys, then the values of all heads; y has a third of its width."""
    cdef Py_ssize_t heads
    cdef Py_ssize_t size        # features of a head
    cdef Py_ssize_t T
    cdef Py_ssize_t keys        # panels of keys that a panel of queries attends to at most
    cdef real *p                # (P, heads, keys, PANEL, PANEL) attention weights
    cdef real *sums             # (P, heads, PANEL) sum of y's gradient times y over the features of a head
    cdef real *kv               # (T, 2, width, PANEL) for generation: keys and values of the positions so far
    cdef real *p_at             # (T, PANEL) for generation: attention weights

    def __init__(self, Value x not None, Py_ssize_t heads, Py_ssize_t T):
        self.x, self.y = x, Value(x.width // 3)
        if heads < 1 or x.width != 3 * self.y.width or self.y.width % heads:
            raise ValueError(f"a width of {self.y.width} is not a multiple of {heads} heads")
        self.across = True
        self.y.read_again = True        # in before_backward
        self.heads, self.size, self.T = heads, self.y.width // heads, T
        self.keys = tiles(T - 1, PANEL) + 1

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        Layer.lay_out(self, arena, N)
        self.p = take_values(arena, times(N // PANEL, self.heads), self.keys * BLOCK)

    cdef void lay_out_backward(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        Layer.lay_out_backward(self, arena, N)
        self.sums = take_values(arena, N, self.heads)

    cdef void lay_out_backward_as(self, Layer other) noexcept nogil:
        Layer.lay_out_backward_as(self, other)
        self.sums = (<Attention>other).sums

    cdef inline real *weights(self, Py_ssize_t panel, Py_ssize_t head) noexcept nogil:
        return self.p + (panel * self.heads + head) * self.keys * BLOCK

    cdef void forward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        cdef Py_ssize_t D = self.y.width, stride = PANEL * self.x.width, p, i, at
        for p in range(first, first + n):
            for i in range(self.heads):
                at = PANEL * i * self.size
                attention_forward(b, p, self.x.panels + p * stride + at, self.x.panels + PANEL * D + at,
                                  self.x.panels + 2 * PANEL * D + at, stride, self.size, self.weights(p, i),
                                  self.y.panels + PANEL * p * D + at)

    cdef void before_backward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t p, i, at
        for p in range(first, first + n):
            for i in range(self.heads):
                at = PANEL * (p * self.y.width + i * self.size)
                panel_dot(self.y.grad + at, self.y.panels + at, self.size, self.sums + PANEL * (p * self.heads + i))

    cdef void backward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        cdef Py_ssize_t D = self.y.width, stride = PANEL * self.x.width, p, i, at
        cdef const real *q
        cdef const real *k
        cdef const real *v
        cdef const real *da
        cdef real *dq
        for p in range(first, first + n):
            for i in range(self.heads):
                at = PANEL * i * self.size
                q = self.x.panels + at
                k, v = q + PANEL * D, q + 2 * PANEL * D
                da = self.y.grad + at
                dq = self.x.grad + p * stride + at
                attention_dq(b, p, da + PANEL * p * D, k, v, stride, self.size, self.weights(p, i),
                             self.sums + PANEL * (p * self.heads + i), dq)
                attention_dkv(b, p, tiles(b.N, PANEL), q, da, stride, PANEL * D, v + p * stride, self.size,
                              self.weights(0, i), self.heads * self.keys * BLOCK, self.sums + PANEL * i,
                              PANEL * self.heads, dq + PANEL * D, dq + 2 * PANEL * D)

    cdef void lay_out_position(self, Arena *arena) noexcept nogil:
        Layer.lay_out_position(self, arena)
        self.kv = take_values(arena, times(2 * PANEL, self.T), self.y.width)
        self.p_at = take_values(arena, PANEL, self.T)

    cdef void generate(self, const Tokens *b) noexcept nogil:
        cdef Py_ssize_t D = self.y.width, position = b.positions[0], i, at
        memcpy(self.kv + 2 * PANEL * position * D, self.x.position + PANEL * D, 2 * PANEL * D * sizeof(real))
        for i in range(self.heads):
            at = PANEL * i * self.size
            attention_cached(self.x.position + at, self.kv + at, D, position + 1, self.size, self.p_at,
                             self.y.position + at)
