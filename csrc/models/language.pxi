# What the language models share: token and position embedding below, the vocabulary's logits, softmax and loss above.

# Up to this vocabulary the logits are kept from forward to backward; beyond, backward computes each tile again,
# a third more arithmetic for memory that does not grow with V.
cdef enum:
    KEEP_LOGITS = 2048

# Where the tables are small (V + T at most V_TILE), their gradients are summed chunk by chunk of tokens, each by the
# thread that has those tokens in its cache, and the chunks' sums are added in order: reading what the other core
# has written costs more than that.  The cut depends on the batch alone, so the bits do not depend on the threads.
cdef enum:
    CHUNK_TOKENS = 128
    MAX_CHUNKS = 8


cdef class EmbeddingAndHead(LanguageModel):
    """Its tensors are wte (V, D), wpe (T, D), which follows it in the buffers, what a subclass adds, and lm_head
    (V, D).

    A subclass puts the features of each token into x and x_panels; head_backward leaves their gradient in dx.
    """
    cdef const double *wte
    cdef const double *wpe
    cdef const double *lm_head
    cdef double *dwte
    cdef double *dwpe
    cdef double *dlm_head
    cdef Py_ssize_t ld                  # stride of x and dx
    cdef Py_ssize_t held                # rows of logits held a panel: V, or V_TILE where they are not kept
    cdef double *x                      # (N, ld) features in rows
    cdef double *x_panels               # (P, D, 8) the same in panels
    cdef double *dx                     # (N, ld)
    cdef double *logits                 # (P, held, 8) logits, then exp, then dlogits
    cdef double *weight                 # (V_TILE, ld) a tile of lm_head with padded rows
    cdef double *partial                # (MAX_CHUNKS - 1, V + T, D) the sums of all chunks but the first
    cdef Softmax *softmax               # (P,)
    cdef Tokens *tokens                 # the bound batch

    def __init__(self, params, grads, Py_ssize_t V, Py_ssize_t D, Py_ssize_t T, dict tensors not None):
        Model.__init__(self, kernels, params, grads)
        cdef dict places = self.places(tensors)
        self.V, self.D, self.T = V, D, T
        self.ld = padded(D)
        self.held = V if V <= KEEP_LOGITS else V_TILE
        self.point(places["wte"], &self.wte, &self.dwte)
        self.point(places["wpe"], &self.wpe, &self.dwpe)
        self.point(places["lm_head"], &self.lm_head, &self.dlm_head)

    cdef void write_logits(self, double *logits) noexcept nogil:
        cdef Py_ssize_t v, v_tile, p, rows, tokens
        for p in range(tiles(self.tokens.N, 8)):
            tokens = min(self.tokens.N - 8 * p, 8)
            for v_tile in range(tiles(self.V, V_TILE)):
                v = v_tile * V_TILE
                rows = min(self.V - v, V_TILE)
                logits_tile(self.x_panels + 8 * p * self.D, self.lm_head + v * self.D, rows, self.D, self.logits)
                transpose_panel(self.logits, tokens, rows, logits + 8 * p * self.V + v, self.V)

    cdef int bind(self, Batch batch, Py_ssize_t predictions) except -1:
        cdef Tokens *tokens = &(<TokenBatch?>batch).tokens
        if tokens.n_ids > self.V or tokens.block_size > self.T:
            raise ValueError(f"ids up to {tokens.n_ids - 1} in blocks of {tokens.block_size} do not fit "
                             f"a model of {self.V} ids and blocks of {self.T}")
        self.batch = batch
        self.tokens = tokens
        return self.make_room(round8(predictions))

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        self.x = take_values(arena, N, self.ld)
        self.dx = take_values(arena, N, self.ld)
        self.x_panels = take_values(arena, N, self.D)
        self.logits = take_values(arena, N, self.held)
        self.weight = take_values(arena, V_TILE, self.ld)
        self.softmax = <Softmax *>take(arena, N // 8, sizeof(Softmax))
        self.losses = take_values(arena, N, 1)
        self.partial = take_values(arena, (self.chunks(N) - 1) * (self.V + self.T), self.D)

    cdef void embed_panel(self, Py_ssize_t p, double *rows, double *panel) noexcept nogil:
        """The embeddings of panel p, as `rows` (8, ld) and as `panel` (D, 8)."""
        cdef Tokens *b = self.tokens
        cdef Py_ssize_t n = 8 * p, tokens = min(b.N - n, 8)
        embed(b.inputs + n, b.positions + n, tokens, self.D, self.wte, self.wpe, rows, self.ld)
        transpose_rows(rows, self.ld, tokens, self.D, panel)

    cdef void scatter_embeddings(self) noexcept nogil:
        """Add dx to the rows of wte's and wpe's gradients that the tokens came from."""
        cdef Py_ssize_t chunks = self.chunks(self.tokens.N), size = (self.V + self.T) * self.D, c
        cdef int threads = min(self.head_threads(), chunks)
        if not self.add:
            memset(self.dwte, 0, size * 8)
        memset(self.partial, 0, (chunks - 1) * size * 8)
        if threads == 1:
            for c in range(chunks):
                self.scatter_chunk(c, chunks)
        else:
            for c in prange(chunks, num_threads=threads, schedule="static"):
                self.scatter_chunk(c, chunks)
        self.add_partial(self.dwte, size, chunks)

    cdef void scatter_chunk(self, Py_ssize_t c, Py_ssize_t chunks) noexcept nogil:
        cdef Tokens *b = self.tokens
        cdef Py_ssize_t P = tiles(b.N, 8), n = 8 * (P * c // chunks), N = min(8 * (P * (c + 1) // chunks), b.N) - n
        cdef double *dwte = self.dwte if c == 0 else self.partial + (c - 1) * (self.V + self.T) * self.D
        scatter(b.inputs + n, N, self.D, 0, self.D, self.dx + n * self.ld, self.ld, dwte)
        scatter(b.positions + n, N, self.D, 0, self.D, self.dx + n * self.ld, self.ld, dwte + self.V * self.D)

    cdef Py_ssize_t chunks(self, Py_ssize_t N) noexcept nogil:
        """Into how many chunks N tokens are cut: a power of two, for threads to share evenly."""
        cdef Py_ssize_t chunks = 1
        if self.V + self.T <= V_TILE:
            while chunks < MAX_CHUNKS and 2 * chunks * CHUNK_TOKENS <= N:
                chunks *= 2
        return chunks

    cdef void add_partial(self, double *grad, Py_ssize_t size, Py_ssize_t chunks) noexcept nogil:
        """Add the first `size` values of each chunk's sums, in order."""
        cdef Py_ssize_t c, i
        cdef const double *partial
        for c in range(chunks - 1):
            partial = self.partial + c * (self.V + self.T) * self.D
            for i in range(size):
                grad[i] += partial[i]

    cdef inline int head_threads(self) noexcept nogil:
        return threads_in_pass(4 * self.tokens.N * min(self.V, V_TILE) * self.D)

    cdef void head_forward(self, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
        """Logits, softmax and losses of the panels first..last, one tile of the vocabulary after the other."""
        cdef Tokens *b = self.tokens
        cdef Py_ssize_t v, v_tile, p, n, tokens, rows
        cdef bint kept = self.held == self.V
        cdef double *logits
        for v_tile in range(tiles(self.V, V_TILE)):
            v = v_tile * V_TILE
            rows = min(self.V - v, V_TILE)
            for p in range(first, last):
                n = 8 * p
                tokens = min(b.N - n, 8)
                logits = self.logits + n * self.held
                if v == 0:
                    softmax_start(&self.softmax[p])
                logits_tile(self.x_panels + n * self.D, self.lm_head + v * self.D, rows, self.D,
                            logits + (8 * v if kept else 0))
                if not kept:
                    softmax_add(logits, rows, v, b.targets + n, tokens, &self.softmax[p])
                elif v + rows == self.V:
                    softmax_add(logits, self.V, 0, b.targets + n, tokens, &self.softmax[p])
                if v + rows == self.V:
                    softmax_losses(&self.softmax[p], tokens, self.losses + n)

    cdef void head_backward(self) noexcept nogil:
        """dx, and the gradient of lm_head."""
        cdef Tokens *b = self.tokens
        cdef Py_ssize_t P = tiles(b.N, 8), D = self.D, v, v_tile, rows
        cdef int threads = self.head_threads(), i
        if self.V + self.T <= V_TILE:
            self.head_backward_chunks(min(threads, self.chunks(b.N)))
            return
        for v_tile in range(tiles(self.V, V_TILE)):
            v = v_tile * V_TILE
            rows = min(self.V - v, V_TILE)
            copy_rows(self.lm_head + v * D, rows, D, self.weight, self.ld)
            if threads == 1:
                self.head_backward_panels(v, 0, P)
                self.head_backward_rows(v, 0, rows)
                continue
            for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                self.head_backward_panels(v, P * i // threads, P * (i + 1) // threads)
            for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                self.head_backward_rows(v, rows * i // threads, rows * (i + 1) // threads)

    cdef void head_backward_chunks(self, int threads) noexcept nogil:
        cdef Py_ssize_t chunks = self.chunks(self.tokens.N), c
        copy_rows(self.lm_head, self.V, self.D, self.weight, self.ld)
        if threads == 1:
            for c in range(chunks):
                self.head_backward_chunk(c, chunks)
        else:
            for c in prange(chunks, num_threads=threads, schedule="static"):
                self.head_backward_chunk(c, chunks)
        self.add_partial(self.dlm_head, self.V * self.D, chunks)

    cdef void head_backward_chunk(self, Py_ssize_t c, Py_ssize_t chunks) noexcept nogil:
        cdef Py_ssize_t P = tiles(self.tokens.N, 8), first = P * c // chunks, last = P * (c + 1) // chunks
        cdef Py_ssize_t n = 8 * first
        cdef double *dlm_head = self.dlm_head if c == 0 else self.partial + (c - 1) * (self.V + self.T) * self.D
        self.head_backward_panels(0, first, last)
        logits_dw(self.logits + n * self.V, 8 * self.V, self.V, min(8 * last, self.tokens.N) - n, self.x + n * self.ld,
                  self.ld, self.D, dlm_head, self.add and c == 0)

    cdef void head_backward_panels(self, Py_ssize_t v, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
        """dlogits of the tile from v on, and what it adds to dx."""
        cdef Tokens *b = self.tokens
        cdef Py_ssize_t p, n, tokens, rows = min(self.V - v, V_TILE)
        cdef bint kept = self.held == self.V
        cdef double *logits
        for p in range(first, last):
            n = 8 * p
            tokens = min(b.N - n, 8)
            logits = self.logits + n * self.held + (8 * v if kept else 0)
            if not kept:
                logits_tile(self.x_panels + n * self.D, self.lm_head + v * self.D, rows, self.D, logits)
                softmax_exp(logits, rows, &self.softmax[p])
            softmax_grad(logits, rows, v, b.targets + n, b.weights + n, tokens, &self.softmax[p])
            logits_dx(logits, tokens, rows, self.weight, self.ld, self.D, self.dx + n * self.ld, self.ld, v > 0)

    cdef void head_backward_rows(self, Py_ssize_t v, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
        """The gradient of rows v + first .. v + last of lm_head, over all tokens in order."""
        cdef Py_ssize_t row = v + first if self.held == self.V else first
        logits_dw(self.logits + 8 * row, 8 * self.held, last - first, self.tokens.N, self.x, self.ld, self.D,
                  self.dlm_head + (v + first) * self.D, self.add)
