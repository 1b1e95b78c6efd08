# The GPT: RMSNorm without scale, causal multi-head attention, ReLU MLP, no biases.
#
#     x = rmsnorm(wte[token] + wpe[position])
#     in each layer:  x = x + wo attention(rmsnorm(x));  x = x + fc2 relu(fc1 rmsnorm(x))
#     logits = lm_head x
#
# A pass is a few phases.  Within one, each group of panels is worked on from end to end by one thread; attention
# looks at other panels, so a phase ends before it.  The gradients of the weights, sums over all tokens, come in a
# phase of their own, cut by rows.  With too few panels to share, the threads share the rows of each product instead.

# Panels worked on at a time: enough to read a large weight matrix seldom, few enough to stay in the L2 cache.
cdef enum:
    GROUP = 4


cdef enum:                  # the phases
    EMBED
    LAYER
    MLP_BACKWARD
    ATTENTION_BACKWARD


cdef struct Layer:
    const double *wqkv      # (3 D, D) attn_wq, attn_wk and attn_wv, which are neighbours
    const double *wo        # (D, D)
    const double *fc1       # (4 D, D)
    const double *fc2       # (D, 4 D)
    double *dwqkv
    double *dwo
    double *dfc1
    double *dfc2
    # What forward leaves for backward: in panels, and where a weight's gradient needs them in strips of
    # eight features too, so that linear_dw reads them in the order of memory.
    double *y1              # (P, D, 8) rmsnorm(x)
    double *s1              # (P, 8) its scale
    double *qkv             # (P, 3 D, 8)
    double *p               # (P, n_head, keys, 8, 8) attention weights
    double *a               # (P, D, 8) what attention gives
    double *y2              # (P, D, 8) rmsnorm(x) before the MLP
    double *s2              # (P, 8)
    double *h               # (P, 4 D, 8) relu(fc1 y2)
    double *y1_strips       # (D / 8, N, 8) the same in strips
    double *a_strips        # (D / 8, N, 8)
    double *y2_strips       # (D / 8, N, 8)
    double *h_strips        # (4 D / 8, N, 8)


cdef struct Position:       # what one position of up to eight documents goes through, in panels
    double *logits          # (V, 8)
    double *x               # (D, 8)
    double *y               # (D, 8)
    double *q               # (D, 8)
    double *a               # (D, 8)
    double *h               # (4 D, 8)
    double *rows            # (8, ld)
    double *scale           # (8,)
    double *p               # (T, 8)


cdef class GPT(EmbeddingAndHead):
    cdef readonly Py_ssize_t n_layer, n_head
    cdef int activation                 # of the MLP
    cdef Py_ssize_t size_head           # D / n_head
    cdef Py_ssize_t keys                # panels of keys that a panel of queries may look at
    cdef Py_ssize_t strip               # values in a strip: eight for each token that there is room for
    cdef double *fc2_room               # for the weights of a layer as pack_columns leaves them,
    cdef double *fc1_room
    cdef double *wo_room
    cdef double *wqkv_room
    cdef double *fc2_packed             # and those weights: all four NULL where packing does not pay
    cdef double *fc1_packed
    cdef double *wo_packed
    cdef double *wqkv_packed
    cdef Buffer layer_table
    cdef Layer *layers                  # (n_layer,)
    cdef double *y0                     # (P, D, 8) rmsnorm of the embeddings
    cdef double *s0                     # (P, 8)
    cdef double *dout                   # (P, D, 8) gradient of a layer's output
    cdef double *dmid                   # (P, D, 8) of what its MLP is added to
    cdef double *din                    # (P, D, 8) of its input
    cdef double *dy                     # (P, D, 8) of y1 or y2
    cdef double *dh                     # (P, 4 D, 8)
    cdef double *da                     # (P, D, 8)
    cdef double *sums                   # (P, n_head, 8) sum of da a over a head
    cdef double *dqkv                   # (P, 3 D, 8)
    cdef Buffer cache
    cdef double *kv                     # (n_layer, T, 2 D, 8) keys and values of the documents being generated
    cdef Buffer scratch
    cdef Position at                    # of the position that is generated

    @staticmethod
    def tensors(V, D, T, n_layer):
        tensors = {"wte": (V, D), "wpe": (T, D)}
        for l in range(n_layer):
            # wq, wk and wv are one matrix (3 D, D) to the passes.
            for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo"):
                tensors[f"layer{l}.{name}"] = (D, D)
            tensors[f"layer{l}.mlp_fc1"] = (4 * D, D)
            tensors[f"layer{l}.mlp_fc2"] = (D, 4 * D)
        tensors["lm_head"] = (V, D)
        return tensors

    def __init__(self, params, grads, Py_ssize_t V, Py_ssize_t D, Py_ssize_t T, Py_ssize_t n_layer, Py_ssize_t n_head):
        cdef dict tensors = GPT.tensors(V, D, T, n_layer), places
        cdef Layer *layer
        cdef Py_ssize_t l
        if n_head < 1 or D % n_head:
            raise ValueError(f"n_embd = {D} must be a multiple of n_head = {n_head}")
        EmbeddingAndHead.__init__(self, params, grads, V, D, T, tensors)
        self.n_layer, self.n_head, self.size_head = n_layer, n_head, D // n_head
        self.activation = RELU
        self.keys = tiles(T - 1, 8) + 1
        self.layer_table, self.cache, self.scratch = Buffer(), Buffer(), Buffer()
        self.layers = <Layer *>self.layer_table.array(n_layer, sizeof(Layer))
        places = self.places(tensors)
        for l in range(n_layer):
            layer = &self.layers[l]
            self.point(places[f"layer{l}.attn_wq"], &layer.wqkv, &layer.dwqkv)
            self.point(places[f"layer{l}.attn_wo"], &layer.wo, &layer.dwo)
            self.point(places[f"layer{l}.mlp_fc1"], &layer.fc1, &layer.dfc1)
            self.point(places[f"layer{l}.mlp_fc2"], &layer.fc2, &layer.dfc2)

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        cdef Py_ssize_t D = self.D, l
        cdef Layer *layer
        EmbeddingAndHead.lay_out(self, arena, N)
        self.y0 = take_values(arena, N, D)
        self.s0 = take_values(arena, N, 1)
        self.dout = take_values(arena, N, D)
        self.dmid = take_values(arena, N, D)
        self.din = take_values(arena, N, D)
        self.dy = take_values(arena, N, D)
        self.dh = take_values(arena, N, 4 * D)
        self.da = take_values(arena, N, D)
        self.sums = take_values(arena, N, self.n_head)
        self.dqkv = take_values(arena, N, 3 * D)
        self.fc2_room = take_packed(arena, D, 4 * D)
        self.fc1_room = take_packed(arena, 4 * D, D)
        self.wo_room = take_packed(arena, D, D)
        self.wqkv_room = take_packed(arena, 3 * D, D)
        self.strip = 8 * N
        for l in range(self.n_layer):
            layer = &self.layers[l]
            layer.y1 = take_values(arena, N, D)
            layer.s1 = take_values(arena, N, 1)
            layer.qkv = take_values(arena, N, 3 * D)
            layer.p = take_values(arena, times(N // 8, self.n_head), 64 * self.keys)
            layer.a = take_values(arena, N, D)
            layer.y2 = take_values(arena, N, D)
            layer.s2 = take_values(arena, N, 1)
            layer.h = take_values(arena, N, 4 * D)
            layer.y1_strips = take_values(arena, N, round8(D))
            layer.a_strips = take_values(arena, N, round8(D))
            layer.y2_strips = take_values(arena, N, round8(D))
            layer.h_strips = take_values(arena, N, round8(4 * D))

    cdef double forward(self) noexcept nogil:
        cdef Py_ssize_t l
        self.over_panels(EMBED, 0)
        for l in range(self.n_layer):
            self.over_panels(LAYER, l)
        return weighted_sum(self.losses, self.tokens.weights, self.tokens.N)

    cdef void backward(self) noexcept nogil:
        cdef Py_ssize_t i, l
        self.head_backward()
        for i in range(self.n_layer):
            l = self.n_layer - 1 - i
            self.pack(&self.layers[l])
            self.over_panels(MLP_BACKWARD, l)
            self.over_panels(ATTENTION_BACKWARD, l)
            self.weight_gradients(l)
            self.dout, self.din = self.din, self.dout
        self.scatter_embeddings()

    cdef bint packs(self) noexcept nogil:
        """Whether packing pays: narrow weights lie in the L1 cache as they are."""
        return self.tokens.N > 24 and self.D >= 64

    cdef void pack(self, Layer *layer) noexcept nogil:
        """The layer's weights as linear_dx reads them best."""
        cdef Py_ssize_t D = self.D
        cdef int threads = threads_for(24 * D * D), i
        self.fc2_packed = self.fc1_packed = self.wo_packed = self.wqkv_packed = NULL
        if not self.packs():
            return
        self.fc2_packed, self.fc1_packed = self.fc2_room, self.fc1_room
        self.wo_packed, self.wqkv_packed = self.wo_room, self.wqkv_room
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            pack_columns(layer.fc2, D, 4 * D, share(4 * D, i, threads), share(4 * D, i + 1, threads), self.fc2_packed)
            pack_columns(layer.fc1, 4 * D, D, share(D, i, threads), share(D, i + 1, threads), self.fc1_packed)
            pack_columns(layer.wo, D, D, share(D, i, threads), share(D, i + 1, threads), self.wo_packed)
            pack_columns(layer.wqkv, 3 * D, D, share(D, i, threads), share(D, i + 1, threads), self.wqkv_packed)

    cdef void over_panels(self, int phase, Py_ssize_t l) noexcept nogil:
        """One phase of layer l, the panels shared among threads where there are enough of them."""
        cdef Py_ssize_t P = tiles(self.tokens.N, 8)
        cdef int threads = threads_in_pass(8 * P * 12 * self.D * self.D) if P >= 8 else 1, i
        if threads > P // 4:
            threads = <int>(P // 4)
        if threads <= 1:
            self.panels(phase, l, 0, P, True)
            return
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            self.panels(phase, l, P * i // threads, P * (i + 1) // threads, False)

    cdef void panels(self, int phase, Py_ssize_t l, Py_ssize_t first, Py_ssize_t last, bint parallel) noexcept nogil:
        """One phase of layer l for the panels first..last; `parallel`: products may use several threads."""
        cdef Py_ssize_t group, p, n
        for group in range(tiles(last - first, GROUP)):
            p = first + group * GROUP
            n = min(last - p, GROUP)
            if phase == EMBED:
                self.embed_group(p, n)
                self.project(&self.layers[0], p, n, parallel)
            elif phase == LAYER:
                self.layer_forward(&self.layers[l], p, n, parallel)
                if l + 1 < self.n_layer:
                    self.project(&self.layers[l + 1], p, n, parallel)
            elif phase == MLP_BACKWARD:
                self.mlp_backward(l, p, n, parallel)
            else:
                self.attention_backward(l, p, n, parallel)
        if phase == LAYER and l + 1 == self.n_layer:
            for p in range(first, last):
                self.to_rows(self.x_panels, p, self.D, self.x, self.ld)
            self.head_forward(first, last)

    cdef void to_rows(self, const double *panels, Py_ssize_t p, Py_ssize_t D, double *rows,
                      Py_ssize_t ld) noexcept nogil:
        transpose_panel(panels + 8 * p * D, min(self.tokens.N - 8 * p, 8), D, rows + 8 * p * ld, ld)

    cdef void embed_group(self, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t p
        cdef double *x
        for p in range(first, first + n):
            x = self.x_panels + 8 * p * self.D
            self.embed_panel(p, self.x + 8 * p * self.ld, x)
            rmsnorm_forward(x, self.D, self.y0 + 8 * p * self.D, self.s0 + 8 * p)
            memcpy(x, self.y0 + 8 * p * self.D, 64 * self.D)

    cdef void project(self, Layer *layer, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        """Queries, keys and values of n panels."""
        cdef Py_ssize_t D = self.D, p
        for p in range(first, first + n):
            rmsnorm_forward(self.x_panels + 8 * p * D, D, layer.y1 + 8 * p * D, layer.s1 + 8 * p)
            transpose_strips(layer.y1 + 8 * p * D, D, layer.y1_strips + 64 * p, self.strip)
        p = 8 * first * D
        linear_forward(layer.wqkv, 3 * D, D, layer.y1 + p, layer.qkv + 3 * p, n, False, parallel)

    cdef void layer_forward(self, Layer *layer, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        """From the queries, keys and values on, n panels."""
        cdef Py_ssize_t D = self.D, size = self.size_head, p, i, head
        cdef double *qkv
        for p in range(first, first + n):
            for i in range(self.n_head):
                head = 8 * i * size
                qkv = layer.qkv + head
                attention_forward(self.tokens, p, qkv + 24 * p * D, qkv + 8 * D, qkv + 16 * D, 24 * D, size,
                                  layer.p + (p * self.n_head + i) * self.keys * 64, layer.a + 8 * p * D + head)
            transpose_strips(layer.a + 8 * p * D, D, layer.a_strips + 64 * p, self.strip)
        p = 8 * first * D
        linear_forward(layer.wo, D, D, layer.a + p, self.x_panels + p, n, True, parallel)
        for p in range(first, first + n):
            rmsnorm_forward(self.x_panels + 8 * p * D, D, layer.y2 + 8 * p * D, layer.s2 + 8 * p)
            transpose_strips(layer.y2 + 8 * p * D, D, layer.y2_strips + 64 * p, self.strip)
        p = 8 * first * D
        linear_forward(layer.fc1, 4 * D, D, layer.y2 + p, layer.h + 4 * p, n, False, parallel)
        for p in range(first, first + n):
            activation_forward(self.activation, layer.h + 32 * p * D, 4 * D)
            transpose_strips(layer.h + 32 * p * D, 4 * D, layer.h_strips + 64 * p, self.strip)
        p = 8 * first * D
        linear_forward(layer.fc2, D, 4 * D, layer.h + 4 * p, self.x_panels + p, n, True, parallel)

    cdef void mlp_backward(self, Py_ssize_t l, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        """From the gradient of the layer's output to that of what attention gives, n panels."""
        cdef Layer *layer = &self.layers[l]
        cdef Py_ssize_t D = self.D, p, i
        if l + 1 == self.n_layer:
            for p in range(first, first + n):
                transpose_rows(self.dx + 8 * p * self.ld, self.ld, min(self.tokens.N - 8 * p, 8), D,
                               self.dout + 8 * p * D)
        p = 8 * first * D
        linear_dx(layer.fc2, self.fc2_packed, D, 4 * D, self.dout + p, self.dh + 4 * p, n, parallel)
        activation_backward(self.activation, self.dh + 4 * p, layer.h + 4 * p, 4 * D * n)
        linear_dx(layer.fc1, self.fc1_packed, 4 * D, D, self.dh + 4 * p, self.dy + p, n, parallel)
        for p in range(first, first + n):
            i = 8 * p * D
            rmsnorm_backward(self.dy + i, layer.y2 + i, layer.s2 + 8 * p, D, self.dout + i, self.dmid + i)
        p = 8 * first * D
        linear_dx(layer.wo, self.wo_packed, D, D, self.dmid + p, self.da + p, n, parallel)
        for p in range(first, first + n):
            for i in range(self.n_head):
                panel_dot(self.da + 8 * (p * D + i * self.size_head), layer.a + 8 * (p * D + i * self.size_head),
                          self.size_head, self.sums + 8 * (p * self.n_head + i))

    cdef void attention_backward(self, Py_ssize_t l, Py_ssize_t first, Py_ssize_t n, bint parallel) noexcept nogil:
        """From the gradient of what attention gives to that of the layer's input, n panels."""
        cdef Layer *layer = &self.layers[l]
        cdef Py_ssize_t D = self.D, H = self.n_head, size = self.size_head, P = tiles(self.tokens.N, 8), p, i, head
        cdef double *qkv
        cdef double *dqkv
        cdef double *weights
        for p in range(first, first + n):
            for i in range(H):
                head = 8 * i * size
                qkv = layer.qkv + head
                dqkv = self.dqkv + 24 * p * D + head
                weights = layer.p + i * self.keys * 64
                attention_dq(self.tokens, p, self.da + 8 * p * D + head, qkv + 8 * D, qkv + 16 * D, 24 * D, size,
                             weights + p * H * self.keys * 64, self.sums + 8 * (p * H + i), dqkv)
                attention_dkv(self.tokens, p, P, qkv, self.da + head, 24 * D, 8 * D, qkv + 24 * p * D + 16 * D, size,
                              weights, H * self.keys * 64, self.sums + 8 * i, 8 * H, dqkv + 8 * D, dqkv + 16 * D)
        p = 8 * first * D
        linear_dx(layer.wqkv, self.wqkv_packed, 3 * D, D, self.dqkv + 3 * p, self.dy + p, n, parallel)
        for p in range(first, first + n):
            i = 8 * p * D
            rmsnorm_backward(self.dy + i, layer.y1 + i, layer.s1 + 8 * p, D, self.dmid + i, self.din + i)
            if l == 0:
                rmsnorm_backward(self.din + i, self.y0 + i, self.s0 + 8 * p, D, NULL, self.din + i)
                self.to_rows(self.din, p, D, self.dx, self.ld)

    cdef void weight_gradients(self, Py_ssize_t l) noexcept nogil:
        cdef Py_ssize_t work = 24 * self.tokens.N * self.D * self.D
        cdef int threads = threads_in_pass(work) if self.tokens.N > 56 else threads_for(work), i     # as over_panels
        if threads == 1:
            self.weight_gradients_share(&self.layers[l], 0, 1)
            return
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            self.weight_gradients_share(&self.layers[l], i, threads)

    cdef void weight_gradients_share(self, Layer *layer, int i, int threads) noexcept nogil:
        """Thread i's rows of each weight's gradient, over all tokens in order."""
        cdef Py_ssize_t D = self.D, N = self.tokens.N, first = share(D, i, threads), last = share(D, i + 1, threads)
        linear_dw(self.dqkv, 3 * D, share(3 * D, i, threads), share(3 * D, i + 1, threads), N,
                  layer.y1_strips, self.strip, D, layer.dwqkv, self.add)
        linear_dw(self.dmid, D, first, last, N, layer.a_strips, self.strip, D, layer.dwo, self.add)
        linear_dw(self.dh, 4 * D, share(4 * D, i, threads), share(4 * D, i + 1, threads), N,
                  layer.y2_strips, self.strip, D, layer.dfc1, self.add)
        linear_dw(self.dout, D, first, last, N, layer.h_strips, self.strip, 4 * D, layer.dfc2, self.add)

    cdef int prepare_generation(self) except -1:
        if self.kv == NULL:
            self.kv = <double *>self.cache.array(times(times(self.n_layer, self.T), 16 * self.D), sizeof(double))
        if self.at.p == NULL:
            while self.scratch.lays_out():
                self.lay_out_position(&self.scratch.arena)
        return 0

    cdef void generate(self, const int64_t *tokens, Py_ssize_t B, Py_ssize_t position, double *logits) noexcept nogil:
        self.generate_panel(tokens, B, position)
        transpose_panel(self.at.logits, B, self.V, logits, self.V)

    cdef void lay_out_position(self, Arena *arena) noexcept nogil:
        self.at.logits = take_values(arena, 8, self.V)
        self.at.x = take_values(arena, 8, self.D)
        self.at.y = take_values(arena, 8, self.D)
        self.at.q = take_values(arena, 8, self.D)
        self.at.a = take_values(arena, 8, self.D)
        self.at.h = take_values(arena, 8, 4 * self.D)
        self.at.rows = take_values(arena, 8, self.ld)
        self.at.scale = take_values(arena, 8, 1)
        self.at.p = take_values(arena, 8, self.T)

    cdef void generate_panel(self, const int64_t *tokens, Py_ssize_t B, Py_ssize_t position) noexcept nogil:
        """The forward pass of one position of B documents, one in each lane; to at.logits."""
        cdef Py_ssize_t D = self.D, l, i
        cdef int64_t[8] positions
        cdef Position at = self.at
        cdef double *kv
        cdef Layer *layer
        for i in range(8):
            positions[i] = position
        embed(tokens, positions, B, D, self.wte, self.wpe, at.rows, self.ld)
        transpose_rows(at.rows, self.ld, B, D, at.x)
        rmsnorm_forward(at.x, D, at.x, at.scale)
        for l in range(self.n_layer):
            layer = &self.layers[l]
            kv = self.kv + 16 * l * self.T * D
            rmsnorm_forward(at.x, D, at.y, at.scale)
            linear_forward(layer.wqkv, D, D, at.y, at.q, 1, False, True)
            linear_forward(layer.wqkv + D * D, 2 * D, D, at.y, kv + 16 * position * D, 1, False, True)
            for i in range(self.n_head):
                attention_cached(at.q + 8 * i * self.size_head, kv + 8 * i * self.size_head, D, position + 1,
                                 self.size_head, at.p, at.a + 8 * i * self.size_head)
            linear_forward(layer.wo, D, D, at.a, at.x, 1, True, True)
            rmsnorm_forward(at.x, D, at.y, at.scale)
            linear_forward(layer.fc1, 4 * D, D, at.y, at.h, 1, False, True)
            activation_forward(self.activation, at.h, 4 * D)
            linear_forward(layer.fc2, D, 4 * D, at.h, at.x, 1, True, True)
        linear_forward(self.lm_head, self.V, D, at.x, at.logits, 1, False, True)
