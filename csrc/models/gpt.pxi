# The GPT: RMSNorm without scale, causal multi-head attention, ReLU MLP, no biases.
#
#     x = rmsnorm(wte[token] + wpe[position])
#     in each block:  x = x + wo attention(wqkv rmsnorm(x));  x = x + fc2 relu(fc1 rmsnorm(x))
#     logits = x lm_head^T
#
# wqkv is the three tensors attn_wq, attn_wk and attn_wv, one right after another, in one product.  The first line's
# layers belong to the first block.
#
# Uses: layer, linear, rmsnorm, activation, attention, head, embedding, language.

cdef class GPT(Blocks):
    def __init__(self, params, grads, Py_ssize_t V, Py_ssize_t D, Py_ssize_t T, Py_ssize_t n_layer, Py_ssize_t n_head):
        Blocks.__init__(self, params, grads, *GPT.layers(V, D, T, n_layer, n_head))

    @staticmethod
    def layers(Py_ssize_t V, Py_ssize_t D, Py_ssize_t T, Py_ssize_t n_layer, Py_ssize_t n_head):
        """Its blocks of layers, and its head."""
        cdef list blocks = [], layers = []
        cdef Value x, y

        def add(Layer layer):
            layers.append(layer)
            return layer.y

        x = add(Embedding(V, D, T))
        x = add(RMSNorm(x))
        for l in range(n_layer):
            name = f"layer{l}."
            y = add(RMSNorm(x))
            y = add(Linear(y, D, (name + "attn_wq", name + "attn_wk", name + "attn_wv")))
            y = add(Attention(y, n_head, T))
            x = add(Linear(y, D, (name + "attn_wo",), into=x))
            y = add(RMSNorm(x))
            y = add(Linear(y, 4 * D, (name + "mlp_fc1",)))
            y = add(Activation(y, "relu"))
            x = add(Linear(y, D, (name + "mlp_fc2",), into=x))
            blocks.append(layers)
            layers = []
        return blocks, Head(x, V, T)

    @staticmethod
    def tensors(V, D, T, n_layer, n_head):
        return Blocks.tensors_of(*GPT.layers(V, D, T, n_layer, n_head))
