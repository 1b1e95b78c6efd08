# The head of a language model: the logits of the vocabulary, their softmax, and the losses.
#
# Uses: declarations, simd, matmul, layer, logits, cross_entropy, chunks, linear.

# Up to this size of the vocabulary the logits are kept from forward to backward.  Beyond it backward computes them
# again, tile by tile: a third more arithmetic, but memory that does not grow with V.
cdef enum:
    KEEP_LOGITS = 2048


cdef class Head(Layer):
    """logits (N, V) = x lm_head^T, and the loss of each token.

    It reads x both in panels and in rows.  It writes x's gradient in rows, and also in panels unless the layer that
    makes x works in rows.
    """
    cdef Py_ssize_t V
    cdef Py_ssize_t tables              # rows of the token and the position table together (chunks.pxi)
    cdef Py_ssize_t held                # logits of a token in memory: V, or V_TILE where they are not kept
    cdef const real *lm_head
    cdef real *dlm_head
    cdef Chunks chunks
    cdef double *losses                 # (N,)
    cdef real *logits                   # (P, held, PANEL) logits, then their exp, then dlogits
    cdef real *padded_rows              # (V_TILE, ld) one tile of lm_head with padded rows
    cdef Softmax *softmax               # (P,)
    cdef real *logits_at                # (V, PANEL) for generation

    def __init__(self, Value x, Py_ssize_t V, Py_ssize_t T):
        self.x, self.V, self.tables = x, V, V + T
        self.held = V if V <= KEEP_LOGITS else V_TILE
        self.work = V * x.width
        x.in_rows = True

    cdef dict tensors(self):
        return {"lm_head": (self.V, self.x.width)}

    cdef int point(self, const real *params, real *grads, dict places) except -1:
        cdef Py_ssize_t place = places["lm_head"]
        self.lm_head, self.dlm_head = params + place, grads + place
        return 0

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        self.logits = take_values(arena, N, self.held)
        self.padded_rows = take_values(arena, V_TILE, self.x.ld)
        self.softmax = <Softmax *>take(arena, N // PANEL, sizeof(Softmax))
        self.losses = <double *>take(arena, N, sizeof(double))
        lay_out_chunks(&self.chunks, arena, N, self.tables, self.V * self.x.width)

    cdef void lay_out_position(self, Arena *arena) noexcept nogil:
        self.logits_at = take_values(arena, PANEL, self.V)

    cdef void forward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        """Logits, softmax and losses, one tile of the vocabulary after another."""
        cdef Py_ssize_t D = self.x.width, v, v_tile, p, t, tokens, rows
        cdef bint kept = self.held == self.V
        cdef real *logits
        if not self.x.by_rows:
            panels_to_rows(b, first, n, D, self.x.panels, self.x.rows, self.x.ld)
        for v_tile in range(tiles(self.V, V_TILE)):
            v = v_tile * V_TILE
            rows = min(self.V - v, V_TILE)
            for p in range(first, first + n):
                t = PANEL * p
                tokens = min(b.N - t, PANEL)
                logits = self.logits + t * self.held
                if v == 0:
                    softmax_start(&self.softmax[p])
                logits_tile(self.x.panels + t * D, self.lm_head + v * D, rows, D, logits + (PANEL * v if kept else 0))
                if not kept:
                    softmax_add(logits, rows, v, b.targets + t, tokens, &self.softmax[p])
                elif v + rows == self.V:
                    softmax_add(logits, self.V, 0, b.targets + t, tokens, &self.softmax[p])
                if v + rows == self.V:
                    softmax_losses(&self.softmax[p], tokens, self.losses + t)

    cdef void backward_all(self, const Tokens *b, bint add) noexcept nogil:
        """The gradient of x, for all panels, and that of lm_head."""
        cdef Py_ssize_t P = tiles(b.N, PANEL), D = self.x.width, v, v_tile, rows
        cdef int threads = logits_threads(b.N, self.V, D), i
        if self.tables <= V_TILE:
            self.backward_chunks(b, add, threads)
            return
        for v_tile in range(tiles(self.V, V_TILE)):
            v = v_tile * V_TILE
            rows = min(self.V - v, V_TILE)
            copy_rows(self.lm_head + v * D, rows, D, self.padded_rows, self.x.ld)
            if threads == 1:
                self.backward_panels(b, v, 0, P)
                self.backward_rows(b, v, 0, rows, add)
                continue
            for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                self.backward_panels(b, v, share(P, i, threads, 1), share(P, i + 1, threads, 1))
            for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                self.backward_rows(b, v, share(rows, i, threads, 1), share(rows, i + 1, threads, 1), add)

    cdef void backward_chunks(self, const Tokens *b, bint add, int threads) noexcept nogil:
        cdef Py_ssize_t chunks = chunks_of(b.N, self.tables), c
        threads = <int>min(threads, chunks)
        copy_rows(self.lm_head, self.V, self.x.width, self.padded_rows, self.x.ld)
        if threads == 1:
            for c in range(chunks):
                self.backward_chunk(b, c, chunks, add)
        else:
            for c in prange(chunks, num_threads=threads, schedule="static"):
                self.backward_chunk(b, c, chunks, add)
        add_chunks(&self.chunks, self.dlm_head, chunks)

    cdef void backward_chunk(self, const Tokens *b, Py_ssize_t c, Py_ssize_t chunks, bint add) noexcept nogil:
        cdef Py_ssize_t first = share(b.N, c, chunks, PANEL), last = share(b.N, c + 1, chunks, PANEL), ld = self.x.ld
        self.backward_panels(b, 0, first // PANEL, tiles(last, PANEL))
        logits_dw(self.logits + first * self.V, PANEL * self.V, self.V, last - first, self.x.rows + first * ld, ld,
                  self.x.width, chunk_grad(&self.chunks, self.dlm_head, c), add and c == 0)

    cdef void backward_panels(self, const Tokens *b, Py_ssize_t v, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
        """dlogits of the tile that begins at row v, and what it adds to x's gradient."""
        cdef Py_ssize_t D = self.x.width, ld = self.x.ld, p, t, tokens, rows = min(self.V - v, V_TILE)
        cdef bint kept = self.held == self.V
        cdef real *logits
        for p in range(first, last):
            t = PANEL * p
            tokens = min(b.N - t, PANEL)
            logits = self.logits + t * self.held + (PANEL * v if kept else 0)
            if not kept:
                logits_tile(self.x.panels + t * D, self.lm_head + v * D, rows, D, logits)
                softmax_exp(logits, rows, &self.softmax[p])
            softmax_grad(logits, rows, v, b.targets + t, b.weights + t, tokens, &self.softmax[p])
            logits_dx(logits, tokens, rows, self.padded_rows, ld, D, self.x.drows + t * ld, ld, v > 0)
            if v + rows == self.V and not self.x.by_rows:
                transpose_rows(self.x.drows + t * ld, ld, tokens, D, self.x.grad + t * D)

    cdef void backward_rows(self, const Tokens *b, Py_ssize_t v, Py_ssize_t first, Py_ssize_t last,
                            bint add) noexcept nogil:
        """The gradient of the rows v + first .. v + last of lm_head, summed over all tokens in order."""
        cdef Py_ssize_t row = v + first if self.held == self.V else first
        logits_dw(self.logits + PANEL * row, PANEL * self.held, last - first, b.N, self.x.rows, self.x.ld, self.x.width,
                  self.dlm_head + (v + first) * self.x.width, add)

    cdef void generate(self, const Tokens *b) noexcept nogil:
        linear_forward(self.lm_head, self.V, self.x.width, self.x.position, self.logits_at, 1, False, True)

    cdef void write_logits(self, const Tokens *b, real *out) noexcept nogil:
        """out (N, V): the logits of the last forward, computed again."""
        cdef Py_ssize_t D = self.x.width, V = self.V, v, v_tile, p, t, rows
        for p in range(tiles(b.N, PANEL)):
            t = PANEL * p
            for v_tile in range(tiles(V, V_TILE)):
                v = v_tile * V_TILE
                rows = min(V - v, V_TILE)
                logits_tile(self.x.panels + t * D, self.lm_head + v * D, rows, D, self.logits)
                transpose_panel(self.logits, min(b.N - t, PANEL), rows, out + t * V + v, V)
