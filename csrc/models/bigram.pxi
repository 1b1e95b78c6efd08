# The bigram-level model: logits = (wte[token] + wpe[position]) lm_head^T.

cdef class Bigram(EmbeddingAndHead):
    @staticmethod
    def tensors(V, D, T):
        return {"wte": (V, D), "wpe": (T, D), "lm_head": (V, D)}

    def __init__(self, params, grads, Py_ssize_t V, Py_ssize_t D, Py_ssize_t T):
        EmbeddingAndHead.__init__(self, params, grads, V, D, T, Bigram.tensors(V, D, T))

    cdef double forward(self) noexcept nogil:
        cdef Tokens *b = self.tokens
        cdef Py_ssize_t P = tiles(b.N, 8)
        cdef int threads = threads_in_pass(2 * b.N * self.V * self.D), i
        if threads == 1:
            self.forward_panels(0, P)
        else:
            for i in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                self.forward_panels(P * i // threads, P * (i + 1) // threads)
        return weighted_sum(self.losses, b.weights, b.N)

    cdef void forward_panels(self, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
        cdef Py_ssize_t p
        for p in range(first, last):
            self.embed_panel(p, self.x + 8 * p * self.ld, self.x_panels + 8 * p * self.D)
        self.head_forward(first, last)

    cdef void backward(self) noexcept nogil:
        self.head_backward()
        self.scatter_embeddings()
