# One layer alone, forward and backward, for tests/test_layers.py: rows in, panels inside, rows out.
#
# Uses: declarations, simd, matmul, layer, head, embedding.

def one_layer(Layer layer not None, Py_ssize_t N, Py_ssize_t parts, dict given not None):
    """Run a layer for N tokens, and sum the gradients of its weights in `parts` parts, as so many threads would.

    given: addresses of C-contiguous arrays, which are not checked.  Read: ids and positions (N,) int64, x (N, x.width),
    dy (N, y.width), params (the layer's weights end to end).  Written: y and dx, of the shapes of dy and x, and grads.
    The head's y are its losses (N, 1), its targets are the ids, and dy are the weights of the losses.
    """
    cdef Head head = layer if isinstance(layer, Head) else None
    cdef Embedding embedding = layer if isinstance(layer, Embedding) else None
    cdef Buffer work = Buffer()
    cdef Arena *arena = &work.arena
    cdef Value x = layer.x, y = layer.y
    cdef Py_ssize_t P = tiles(N, PANEL), at = 0, part
    cdef dict places = {}
    cdef Tokens b
    for name, (rows, width) in layer.tensors().items():
        places[name] = at
        at += rows * width
    layer.point(<real *><size_t>given["params"], <real *><size_t>given["grads"], places)
    b.N = N
    b.inputs = b.targets = <int64_t *><size_t>given["ids"]
    b.positions, b.weights = <int64_t *><size_t>given["positions"], <double *><size_t>given["dy"]
    while work.lays_out():
        if x is not None:
            x.lay_out(arena, PANEL * P)
            x.lay_out_grad(arena, PANEL * P)
        layer.lay_out(arena, PANEL * P)
        if y is not None:
            layer.lay_out_backward(arena, PANEL * P)
    if x is not None:
        rows_to_panels(&b, x.width, <real *><size_t>given["x"], x.panels)
    layer.forward(&b, 0, P, True)
    if head is not None:
        memcpy(<void *><size_t>given["y"], head.losses, N * sizeof(double))
        head.backward_all(&b, False)
    else:
        panels_to_rows(&b, 0, P, y.width, y.panels, <real *><size_t>given["y"], y.width)
        rows_to_panels(&b, y.width, <real *><size_t>given["dy"], y.grad)
        for part in range(parts):
            layer.pack(&b, part, parts)
        layer.before_backward(&b, 0, P)
        layer.backward(&b, 0, P, True)
        for part in range(parts):
            layer.weight_grad(&b, part, parts, False)
    if embedding is not None:
        embedding.scatter(&b, False)
    if x is not None:
        panels_to_rows(&b, 0, P, x.width, x.grad, <real *><size_t>given["dx"], x.width)


cdef void rows_to_panels(const Tokens *b, Py_ssize_t D, const real *rows, real *panels) noexcept nogil:
    """The panels (P, D, PANEL) of rows (N, D)."""
    cdef Py_ssize_t p, t
    for p in range(tiles(b.N, PANEL)):
        t = PANEL * p
        transpose_rows(rows + t * D, D, min(b.N - t, PANEL), D, panels + t * D)
