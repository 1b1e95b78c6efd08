# Linear layers on panels: y (out, PANEL) = W (out, D) x (D, PANEL) for each panel, the gradient of x, and that of W.
#
# The weights of a wide model are larger than the cache, so each loop reads a block of them once for all its panels.
# With few panels the threads share the rows of W instead.
#
# Uses: declarations, simd, matmul, layer.

cdef enum:
    # linear_forward, rows of W at a time: with 256 columns 96 KiB, which stay in the L2 cache while x is read.
    FORWARD_ROWS = 48
    # linear_dw, tokens at a time: their strips of x stay in the L2 cache while dW is written.
    DW_TOKENS = 128
    # linear_dx without packing reads W down its columns.  Where W is wider than DX_WIDTH it takes DX_ROWS rows at a
    # time: more of them would evict one another from the L1 cache.
    DX_WIDTH = 128
    DX_ROWS = 16
    # Rows are cut for threads and into blocks at multiples of this, which is one of every FL_ROWS: in whole tiles.
    ROWS = 24
    # pack_columns is worth its time for a W of PACK_WIDTH rows and columns or more (a smaller one stays in the L1 cache
    # as it is) and for more than PACK_TOKENS tokens (fewer do not read each weight often enough).
    PACK_WIDTH = 64
    PACK_TOKENS = 24


cdef void linear_forward(const real *W, Py_ssize_t out, Py_ssize_t D, const real *x, real *y, Py_ssize_t panels,
                         bint accumulate, bint parallel) noexcept nogil:
    """y (panels, out, PANEL) = W x, or += where `accumulate`, of x (panels, D, PANEL)."""
    cdef int threads = threads_for(2 * PANEL * panels * out * D) if parallel else 1, i
    if threads == 1:
        linear_forward_rows(W, 0, out, out, D, x, y, panels, accumulate)
        return
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        linear_forward_rows(W, share(out, i, threads, ROWS), share(out, i + 1, threads, ROWS), out, D, x, y, panels,
                            accumulate)


cdef void linear_forward_rows(const real *W, Py_ssize_t first, Py_ssize_t last, Py_ssize_t out, Py_ssize_t D,
                              const real *x, real *y, Py_ssize_t panels, bint accumulate) noexcept nogil:
    cdef Py_ssize_t block, i
    for block in range(tiles(last - first, FORWARD_ROWS)):
        i = first + block * FORWARD_ROWS
        matmul_strips(min(last - i, FORWARD_ROWS), panels, D, W + i * D, D, 1, PANEL, x, PANEL, PANEL * D,
                      y + PANEL * i, PANEL, PANEL * out, accumulate)


cdef void linear_dx(const real *W, const real *packed, Py_ssize_t out, Py_ssize_t D, const real *dy, real *dx,
                    Py_ssize_t panels, bint parallel) noexcept nogil:
    """dx (panels, D, PANEL) = W^T dy, of dy (panels, out, PANEL); packed is what pack_columns made of W, or NULL."""
    cdef int threads = threads_for(2 * PANEL * panels * out * D) if parallel else 1, i
    if threads == 1:
        linear_dx_columns(W, packed, out, 0, D, D, dy, dx, panels)
        return
    for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        linear_dx_columns(W, packed, out, share(D, i, threads, ROWS), share(D, i + 1, threads, ROWS), D, dy, dx, panels)


cdef void linear_dx_columns(const real *W, const real *packed, Py_ssize_t out, Py_ssize_t first, Py_ssize_t last,
                            Py_ssize_t D, const real *dy, real *dx, Py_ssize_t panels) noexcept nogil:
    cdef Py_ssize_t rows = K_BLOCK if D <= DX_WIDTH else DX_ROWS, block, i_block, i_tile, i, k, pair, p
    if packed == NULL:
        for block in range(tiles(out, rows)):
            k = block * rows
            matmul_strips(last - first, panels, min(out - k, rows), W + k * D + first, 1, D, PANEL * D, dy + PANEL * k,
                          PANEL, PANEL * out, dx + PANEL * first, PANEL, PANEL * D, k > 0)
        return
    for i_block in range(tiles(last - first, ROWS)):
        block = first + ROWS * i_block
        for pair in range(tiles(panels, FL_STRIPS)):
            p = pair * FL_STRIPS
            for i_tile in range(tiles(min(last - block, ROWS), FL_ROWS)):
                i = block + i_tile * FL_ROWS
                matmul_strips(min(last - i, FL_ROWS), min(panels - p, FL_STRIPS), out, packed + i * out, 1, FL_ROWS,
                              PANEL * FL_ROWS, dy + PANEL * p * out, PANEL, PANEL * out, dx + PANEL * (p * D + i),
                              PANEL, PANEL * D, False)


cdef void pack_columns(const real *W, Py_ssize_t out, Py_ssize_t D, Py_ssize_t first, Py_ssize_t last,
                       real *packed) noexcept nogil:
    """The columns first..last of W (out, D) in strips of FL_ROWS columns, packed (D / FL_ROWS, out, FL_ROWS), which
    linear_dx reads in the order of memory.  It takes as long as it saves for two or three panels."""
    cdef Py_ssize_t i_tile, i, k, rows
    for i_tile in range(tiles(last - first, FL_ROWS)):
        i = first + i_tile * FL_ROWS
        rows = min(last - i, FL_ROWS)
        for k in range(out):
            if rows == FL_ROWS:         # a constant size compiles to a vector move
                memcpy(packed + i * out + k * FL_ROWS, W + k * D + i, FL_ROWS * sizeof(real))
            else:
                memcpy(packed + i * out + k * FL_ROWS, W + k * D + i, rows * sizeof(real))


cdef real *take_packed(Arena *arena, Py_ssize_t out, Py_ssize_t D) noexcept nogil:
    """Room for what pack_columns makes of W (out, D)."""
    return take_values(arena, times(out, tiles(D, FL_ROWS)), FL_ROWS)


cdef void linear_dw(const real *dy, Py_ssize_t out, Py_ssize_t first, Py_ssize_t last, Py_ssize_t N,
                    const real *x, Py_ssize_t stride, Py_ssize_t D, real *dW, bint add) noexcept nogil:
    """Rows first..last of dW (out, D) = dy^T x over N tokens in order, or += where `add`; dy in panels, x in strips.

    dW is written row by row, so that a large one goes through the cache once.  The rows of dy for a tile are first
    copied next to one another: at a distance of a power of two they would evict one another.
    """
    cdef Py_ssize_t block, i_tile, i, n, p, r, rows, tokens, panel, whole = D // PANEL * PANEL
    cdef real[DW_TOKENS * FL_ROWS] together
    cdef const real *A
    for block in range(tiles(N, DW_TOKENS)):
        n = block * DW_TOKENS
        tokens = min(N - n, DW_TOKENS)
        for i_tile in range(tiles(last - first, FL_ROWS)):
            i = first + i_tile * FL_ROWS
            rows = min(last - i, FL_ROWS)
            A = dy + n * out + PANEL * i
            panel = PANEL * out
            if tokens > PANEL:
                for p in range(tiles(tokens, PANEL)):
                    for r in range(rows):
                        v_store(together + PANEL * (FL_ROWS * p + r), v_load(A + p * panel + PANEL * r))
                A = together
                panel = PANEL * FL_ROWS
            fl_tiles(rows, whole, tokens, A, PANEL, 1, panel, x + PANEL * n, PANEL, stride, dW + i * D, D, PANEL,
                     add or n > 0)
            if whole < D:
                edge_tiles(D - whole, rows, tokens, A, PANEL, 1, panel, x + (whole // PANEL) * stride + PANEL * n,
                           PANEL, dW + i * D + whole, D, add or n > 0)


cdef class Linear(Layer):
    """y = W x; or with `into`, a residual connection: y = into + W x, which overwrites the panels of `into`.

    W is one tensor for each of its names, (out, D) each, one right after another in the flat buffers.
    """
    cdef tuple names
    cdef Py_ssize_t out         # features of y, of all names together
    cdef Py_ssize_t D           # features of x
    cdef const real *W          # (out, D)
    cdef real *dW
    cdef real *strips           # (D / PANEL, N, PANEL) a copy of x that linear_dw reads in the order of memory
    cdef Py_ssize_t stride      # from one strip to the next
    cdef real *packed           # what pack_columns makes of W

    def __init__(self, Value x not None, Py_ssize_t out, tuple names not None, Value into=None):
        self.x, self.y, self.names = x, Value(out * len(names)), names
        self.out, self.D = self.y.width, x.width
        self.work = self.out * self.D
        if into is not None:
            if into.width != self.out:
                raise ValueError(f"{self.out} features cannot be added to {into.width}")
            self.y.overwrite(into)
            into.sum = self.y

    cdef dict tensors(self):
        return dict.fromkeys(self.names, (self.out // len(self.names), self.D))

    cdef int point(self, const real *params, real *grads, dict places) except -1:
        cdef Py_ssize_t place = places[self.names[0]]
        self.W, self.dW = params + place, grads + place
        return 0

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        Layer.lay_out(self, arena, N)
        self.strips = take_values(arena, N, round_up(self.D, PANEL))
        self.stride = PANEL * N

    cdef void lay_out_backward(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        Layer.lay_out_backward(self, arena, N)
        self.packed = take_packed(arena, self.out, self.D)

    cdef void lay_out_backward_as(self, Layer other) noexcept nogil:
        Layer.lay_out_backward_as(self, other)
        self.packed = (<Linear>other).packed

    cdef void forward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        cdef Py_ssize_t p
        for p in range(first, first + n):
            transpose_strips(self.x.panels + PANEL * p * self.D, self.D, self.strips + BLOCK * p, self.stride)
        linear_forward(self.W, self.out, self.D, self.x.panels + PANEL * first * self.D,
                       self.y.panels + PANEL * first * self.out, n, self.y.panels_of is not None, parallel)

    cdef void backward(self, const Tokens *b, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        linear_dx(self.W, self.packed if self.packs(b) else NULL, self.out, self.D,
                  self.y.grad + PANEL * first * self.out, self.x.grad + PANEL * first * self.D, n, parallel)

    cdef inline bint packs(self, const Tokens *b) noexcept nogil:
        return b.N > PACK_TOKENS and min(self.out, self.D) >= PACK_WIDTH

    cdef void pack(self, const Tokens *b, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
        if self.packs(b):
            pack_columns(self.W, self.out, self.D, share(self.D, part, parts, ROWS),
                         share(self.D, part + 1, parts, ROWS), self.packed)

    cdef void weight_grad(self, const Tokens *b, Py_ssize_t part, Py_ssize_t parts, bint add) noexcept nogil:
        linear_dw(self.y.grad, self.out, share(self.out, part, parts, ROWS), share(self.out, part + 1, parts, ROWS),
                  b.N, self.strips, self.stride, self.D, self.dW, add)

    cdef void generate(self, const Tokens *b) noexcept nogil:
        linear_forward(self.W, self.out, self.D, self.x.position, self.y.position, 1, self.y.panels_of is not None,
                       True)
