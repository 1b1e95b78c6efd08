# Token plus position embedding: x[n] = wte[inputs[n]] + wpe[positions[n]].
#
# Uses: declarations, simd, matmul, layer, logits, chunks.

cdef void embed(const int64_t *inputs, const int64_t *positions, Py_ssize_t N, Py_ssize_t D,
                const real *wte, const real *wpe, real *x, Py_ssize_t ldx) noexcept nogil:
    """x (N, ldx): for each token, one row of wte (V, D) plus one of wpe (T, D)."""
    cdef Py_ssize_t n, d
    cdef const real *token
    cdef const real *position
    cdef real *out
    for n in range(N):
        token = wte + inputs[n] * D
        position = wpe + positions[n] * D
        out = x + n * ldx
        for d in range(D):
            out[d] = token[d] + position[d]


cdef void scatter(const int64_t *ids, Py_ssize_t N, Py_ssize_t D, const real *dx, Py_ssize_t ldx,
                  real *dtable) noexcept nogil:
    """dtable[ids[n]] += dx[n] for n in order; an id may occur more than once."""
    cdef Py_ssize_t n, d
    cdef const real *row
    cdef real *out
    for n in range(N):
        row = dx + n * ldx
        out = dtable + ids[n] * D
        for d in range(D):
            out[d] += row[d]


cdef class Embedding(Layer):
    """Its weights are wte (V, D) and, right after it in the flat buffers, wpe (T, D)."""
    cdef Py_ssize_t V, T
    cdef const real *wte
    cdef const real *wpe
    cdef real *dwte
    cdef Chunks chunks

    def __init__(self, Py_ssize_t V, Py_ssize_t D, Py_ssize_t T):
        self.V, self.T = V, T
        self.y = Value(D)
        self.y.by_rows = True

    cdef dict tensors(self):
        return {"wte": (self.V, self.y.width), "wpe": (self.T, self.y.width)}

    cdef int point(self, const real *params, real *grads, dict places) except -1:
        cdef Py_ssize_t place = places["wte"]
        self.wte, self.dwte = params + place, grads + place
        self.wpe = self.wte + self.V * self.y.width
        return 0

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        Layer.lay_out(self, arena, N)
        lay_out_chunks(&self.chunks, arena, N, self.V + self.T, (self.V + self.T) * self.y.width)

    cdef void forward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        cdef Py_ssize_t D = self.y.width, ld = self.y.ld, p, t, tokens
        for p in range(first, first + n):
            t = PANEL * p
            tokens = min(b.N - t, PANEL)
            embed(b.inputs + t, b.positions + t, tokens, D, self.wte, self.wpe, self.y.rows + t * ld, ld)
            transpose_rows(self.y.rows + t * ld, ld, tokens, D, self.y.panels + t * D)

    cdef void backward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        if not self.y.in_rows:
            panels_to_rows(b, first, n, self.y.width, self.y.grad, self.y.drows, self.y.ld)

    cdef void scatter(self, const Tokens *b, bint add) noexcept nogil:
        """The gradient of both tables: each token's is added to the rows that it was made from."""
        cdef Py_ssize_t size = (self.V + self.T) * self.y.width, chunks = chunks_of(b.N, self.V + self.T), c
        cdef int threads = <int>min(logits_threads(b.N, self.V, self.y.width), chunks)
        if not add:
            memset(self.dwte, 0, size * sizeof(real))
        memset(self.chunks.sums, 0, (chunks - 1) * size * sizeof(real))
        if threads == 1:
            for c in range(chunks):
                self.scatter_chunk(b, c, chunks)
        else:
            for c in prange(chunks, num_threads=threads, schedule="static"):
                self.scatter_chunk(b, c, chunks)
        add_chunks(&self.chunks, self.dwte, chunks)

    cdef void scatter_chunk(self, const Tokens *b, Py_ssize_t c, Py_ssize_t chunks) noexcept nogil:
        cdef Py_ssize_t D = self.y.width, ld = self.y.ld, n = share(b.N, c, chunks, PANEL)
        cdef Py_ssize_t N = share(b.N, c + 1, chunks, PANEL) - n
        cdef real *dwte = chunk_grad(&self.chunks, self.dwte, c)
        scatter(b.inputs + n, N, D, self.y.drows + n * ld, ld, dwte)
        scatter(b.positions + n, N, D, self.y.drows + n * ld, ld, dwte + self.V * D)

    cdef void generate(self, const Tokens *b) noexcept nogil:
        cdef Py_ssize_t D = self.y.width, t, d
        cdef real *x = self.y.position
        for t in range(PANEL):
            for d in range(D):
                x[PANEL * d + t] = self.wte[b.inputs[t] * D + d] + self.wpe[b.positions[t] * D + d] if t < b.N else 0.0
