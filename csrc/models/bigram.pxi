# The bigram-level model: logits = (wte[token] + wpe[position]) lm_head^T.
#
# Uses: head, embedding, language.

cdef class Bigram(Blocks):
    def __init__(self, params, grads, Py_ssize_t V, Py_ssize_t D, Py_ssize_t T):
        Blocks.__init__(self, params, grads, *Bigram.layers(V, D, T))

    @staticmethod
    def layers(Py_ssize_t V, Py_ssize_t D, Py_ssize_t T):
        """Its blocks of layers, and its head."""
        cdef Embedding embedding = Embedding(V, D, T)
        return [[embedding]], Head(embedding.y, V, T)

    @staticmethod
    def tensors(V, D, T):
        return Blocks.tensors_of(*Bigram.layers(V, D, T))
