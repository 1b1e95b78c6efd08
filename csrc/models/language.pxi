# The language models: blocks of layers, and the schedule that runs them.
#
# A pass consists of phases.  In a phase, each group of panels goes through several layers in a row, on one thread; a
# layer that reads other panels (attention) begins a new phase.  The gradients of the weights, which are sums over all
# tokens, are phases of their own, in which the threads share the rows of the weights.  Where there are too few panels
# to share, they share the rows of the weights in each matrix product instead.
#
# Uses: declarations, simd, matmul, layer, linear, head, embedding.

# Panels that go through the layers together: enough to read a large weight matrix seldom, few enough to stay in the L2
# cache.
cdef enum:
    GROUP = 4


cdef int check_blocks(list blocks, Head head) except -1:
    """Raise ValueError where layers do not fit the schedule, or the memory that they share."""
    cdef list block, read = []
    cdef Layer layer, like
    for b, block in enumerate(blocks):
        if not 0 < len(block) <= len(blocks[0]):
            raise ValueError(f"block {b} has {len(block)} layers, expected 1 to {len(blocks[0])}, as many as the first")
        for layer, like in zip(reversed(block), reversed(blocks[0])):
            if type(layer) is not type(like) or layer.y.width != like.y.width:
                raise ValueError(f"block {b} has {type(layer).__name__} of {layer.y.width} features where the first "
                                 f"has {type(like).__name__} of {like.y.width}, counted from their ends")
        layer = block[len(block) - 1]
        if len(blocks) > 1 and layer.y.grad_of is not None:
            raise ValueError(f"block {b} ends in {type(layer).__name__}, whose gradient has no memory of its own")
    if layer.across:
        raise ValueError(f"the last layer is {type(layer).__name__}, expected one that reads no other tokens")
    for layer in [*sum(blocks, []), head]:
        if layer.x is not None and layer.x in read:
            raise ValueError(f"{type(layer).__name__} reads a value that another layer reads, which has one gradient")
        if layer.x is not None and layer.x.sum is not None and not layer.adds_sum:
            raise ValueError(f"{type(layer).__name__} reads a value with a sum, whose gradient it does not add")
        read.append(layer.x)
    return 0


cdef class Blocks(LanguageModel):
    """An embedding, layers and a head.

    The layers come in blocks that end in the same kinds of layers: backward goes through one block, sums the
    gradients of its weights, and goes on to the block before, which uses the same workspace.  The first block may begin
    with further layers; no block has more than it.
    """
    cdef list kept              # the layers, kept alive for the pointers
    cdef Buffer table
    cdef void **layers          # (ends[n_blocks - 1],)
    cdef Py_ssize_t *ends       # (n_blocks,) one past each block's last layer
    cdef Py_ssize_t n_blocks
    cdef Py_ssize_t work        # multiply-adds of a block's products for a token, the mean over blocks (no head)
    cdef Py_ssize_t least       # the fewest panels for a thread
    cdef Embedding embedding    # the first layer
    cdef Head head
    cdef Tokens *tokens         # the bound batch
    cdef Buffer scratch         # for generation

    @staticmethod
    def tensors_of(list blocks not None, Head head not None):
        """The shape of each tensor by name, in the order of the flat buffers."""
        cdef dict tensors = {}
        cdef Layer layer
        for block in blocks:
            for layer in block:
                tensors.update(layer.tensors())
        tensors.update(head.tensors())
        return tensors

    def __init__(self, params, grads, list blocks not None, Head head not None):
        cdef Layer layer
        cdef dict places
        cdef Py_ssize_t i = 0, n = sum(map(len, blocks))
        Model.__init__(self, kernels, params, grads)
        check_blocks(blocks, head)
        self.embedding, self.head, self.kept = blocks[0][0], head, blocks
        self.V, self.D, self.T = head.V, head.x.width, self.embedding.T
        self.n_blocks = len(blocks)
        self.table, self.scratch = Buffer(), Buffer()
        while self.table.lays_out():
            self.layers = <void **>take(&self.table.arena, n, sizeof(void *))
            self.ends = <Py_ssize_t *>take(&self.table.arena, self.n_blocks, sizeof(Py_ssize_t))
        places = self.places(Blocks.tensors_of(blocks, head))
        for b, block in enumerate(blocks):
            for layer in block:
                layer.point(<const real *>self.params, <real *>self.grads, places)
                self.layers[i] = <void *>layer
                self.work += layer.work
                i += 1
            self.ends[<Py_ssize_t>b] = i
        head.point(<const real *>self.params, <real *>self.grads, places)
        self.work //= self.n_blocks
        # A product over a group of panels reads each weight once.
        self.least = GROUP if self.work else 1

    cdef inline Py_ssize_t begin(self, Py_ssize_t block) noexcept nogil:
        return self.ends[block - 1] if block else 0

    cdef int bind(self, Batch batch, Py_ssize_t predictions) except -1:
        cdef Tokens *tokens = &(<TokenBatch?>batch).tokens
        if tokens.n_ids > self.V or tokens.block_size > self.T:
            raise ValueError(f"ids up to {tokens.n_ids - 1} in blocks of {tokens.block_size} do not fit "
                             f"a model of {self.V} ids and blocks of {self.T}")
        self.batch = batch
        self.tokens = tokens
        return self.make_room(round_up(predictions, PANEL))

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        cdef Py_ssize_t block, i
        for i in range(self.ends[self.n_blocks - 1]):
            (<Layer>self.layers[i]).lay_out(arena, N)
        for i in range(self.ends[0]):
            (<Layer>self.layers[i]).lay_out_backward(arena, N)
        for block in range(1, self.n_blocks):
            for i in range(self.ends[block - 1], self.ends[block]):
                (<Layer>self.layers[i]).lay_out_backward_as(<Layer>self.layers[self.ends[0] - (self.ends[block] - i)])
            # Backward of a block reads the gradient of its end and writes that of the end of the block before, so the
            # two are in different memory: the ends of even blocks use block 0's, those of odd ones block 1's.
            if block == 1:
                (<Layer>self.layers[self.ends[1] - 1]).y.lay_out_grad(arena, N)
            elif block % 2:
                (<Layer>self.layers[self.ends[block] - 1]).y.grad = (<Layer>self.layers[self.ends[1] - 1]).y.grad
        self.head.lay_out(arena, N)
        self.losses = self.head.losses

    cdef double forward(self) noexcept nogil:
        cdef Py_ssize_t n = self.ends[self.n_blocks - 1], first = 0, last
        while first < n:
            last = first + 1
            while last < n and not (<Layer>self.layers[last]).across:
                last += 1
            self.phase(True, first, last)
            first = last
        return weighted_sum(self.losses, self.tokens.weights, self.tokens.N)

    cdef void backward(self) noexcept nogil:
        cdef Py_ssize_t i, block, begin, first, last
        self.head.backward_all(self.tokens, self.add)
        for i in range(self.n_blocks):
            block = self.n_blocks - 1 - i
            begin, last = self.begin(block), self.ends[block]
            self.weights(True, begin, last)
            while last > begin:
                first = last - 1
                while first > begin and not (<Layer>self.layers[first - 1]).across:
                    first -= 1
                self.phase(False, first, last)
                last = first
            self.weights(False, begin, self.ends[block])
        self.embedding.scatter(self.tokens, self.add)

    cdef void phase(self, bint forward, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
        """The layers first .. last; the threads share the panels where there are enough of them."""
        # In floating-point operations: two for a multiply-add, but a phase has about half of a block's products.
        # Without products in its layers, as in the bigram, the work is in the head, which is all in one phase.
        cdef Py_ssize_t P = tiles(self.tokens.N, PANEL), work = self.work if self.work else 2 * self.head.work
        cdef int threads = <int>min(threads_in_pass(PANEL * P * work), P // self.least), i
        if threads <= 1:
            self.panels(forward, first, last, 0, P, True)
            return
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            self.panels(forward, first, last, share(P, i, threads, 1), share(P, i + 1, threads, 1), False)

    cdef void panels(self, bint forward, Py_ssize_t first, Py_ssize_t last, Py_ssize_t begin, Py_ssize_t end,
                     bint parallel) noexcept nogil:
        """The layers first .. last for the panels begin .. end; with `parallel`, layers may use several threads.

        The last phase of forward also runs the head.  A phase of backward also calls before_backward of the layer below
        `first`, which begins the next phase.
        """
        cdef Py_ssize_t group, p, n, i
        for group in range(tiles(end - begin, GROUP)):
            p = begin + group * GROUP
            n = min(end - p, GROUP)
            if forward:
                for i in range(first, last):
                    (<Layer>self.layers[i]).forward(self.tokens, p, n, parallel)
                continue
            for i in range(last - 1, first - 1, -1):
                (<Layer>self.layers[i]).backward(self.tokens, p, n, parallel)
            if first > 0:
                (<Layer>self.layers[first - 1]).before_backward(self.tokens, p, n)
        if forward and last == self.ends[self.n_blocks - 1]:
            self.head.forward(self.tokens, begin, end - begin, False)

    cdef void weights(self, bint pack, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
        """For the layers first .. last: pack the weights before a block's backward, or sum their gradients after it."""
        # A block has as many weights as multiply-adds for a token: packing moves each, a gradient adds N products.
        cdef Py_ssize_t N = self.tokens.N, work = 2 * self.work if pack else 2 * N * self.work
        cdef int threads, i
        if pack and N <= PACK_TOKENS:
            return
        # The threads are still awake if the phases before shared the panels.
        threads = threads_in_pass(work) if not pack and tiles(N, PANEL) >= 2 * self.least else threads_for(work)
        if threads == 1:
            self.weights_part(pack, first, last, 0, 1)
            return
        for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            self.weights_part(pack, first, last, i, threads)

    cdef void weights_part(self, bint pack, Py_ssize_t first, Py_ssize_t last, Py_ssize_t part,
                           Py_ssize_t parts) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(first, last):
            if pack:
                (<Layer>self.layers[i]).pack(self.tokens, part, parts)
            else:
                (<Layer>self.layers[i]).weight_grad(self.tokens, part, parts, self.add)

    cdef void write_logits(self, void *logits) noexcept nogil:
        self.head.write_logits(self.tokens, <real *>logits)

    cdef int prepare_generation(self) except -1:
        cdef Py_ssize_t i
        if self.head.logits_at == NULL:     # not laid out yet
            while self.scratch.lays_out():
                for i in range(self.ends[self.n_blocks - 1]):
                    (<Layer>self.layers[i]).lay_out_position(&self.scratch.arena)
                self.head.lay_out_position(&self.scratch.arena)
        return 0

    cdef void generate(self, const int64_t *tokens, Py_ssize_t B, Py_ssize_t position, void *logits) noexcept nogil:
        cdef int64_t[PANEL] positions
        cdef Tokens b       # only what `generate` of a layer reads is set: N, inputs and positions
        cdef Py_ssize_t i
        for i in range(PANEL):
            positions[i] = position
        b.N, b.inputs, b.positions = B, <int64_t *>tokens, positions
        for i in range(self.ends[self.n_blocks - 1]):
            (<Layer>self.layers[i]).generate(&b)
        self.head.generate(&b)
        transpose_panel(self.head.logits_at, B, self.V, <real *>logits, self.V)
