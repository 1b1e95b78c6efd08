# The MLP: linear layers with ReLU or tanh between them, over plain arrays; without a hidden layer, linear or softmax
# regression.
#
# Examples stay in rows, x[example][feature], from the input to the loss and back: the bias, the activation and its
# derivative then run along memory, and no activation is transposed.  The weights are transposed once a step, into
# panels of PANEL outputs, weight[panel][input][output], which the matrix product reads in the order of memory.  Strides
# are padded to whole panels, so a width that is no multiple of PANEL costs as much as the next multiple.
#
# Uses: declarations, simd, matmul, cross_entropy, activation.

cdef struct Dense:
    Py_ssize_t n_in
    Py_ssize_t n_out
    Py_ssize_t ld           # stride of z and dz
    const real *weight      # (n_out, n_in)
    const real *bias        # (n_out,)
    real *dweight
    real *dbias
    real *panels            # (ceil(n_out / PANEL), n_in + 1, PANEL) the weights transposed, the bias as the last row
    real *weight_rows       # (n_out, padded(n_in)) the weights with padded rows
    real *z                 # (N, ld) the outputs, after the activation
    real *dz                # (N, ld) the gradient of the outputs before the activation


cdef void squared_error(const real *z, Py_ssize_t ld, const real *targets, Py_ssize_t rows, Py_ssize_t n_out,
                        real *difference, double *losses) noexcept nogil:
    """difference (rows, ld) = z - targets, and losses (rows,) its mean square over the n_out outputs."""
    cdef Py_ssize_t n, i
    cdef double total, d
    for n in range(rows):
        total = 0.0
        for i in range(n_out):
            d = z[n * ld + i] - targets[n * n_out + i]
            difference[n * ld + i] = d
            total += d * d
        losses[n] = total / <double>n_out


cdef class MLP(ArrayModel):
    cdef readonly Py_ssize_t depth      # linear layers
    cdef int activation                 # between the layers
    cdef bint cross_entropy
    cdef Buffer layer_memory
    cdef Dense *layers                  # (depth,)
    cdef real *exp                      # (P, n_out, PANEL) with cross-entropy: logits, then their exp, then dlogits
    cdef Softmax *softmax               # (P,)
    cdef Rows *rows                     # the bound batch

    @staticmethod
    def tensors(widths):
        tensors = {}
        for i in range(len(widths) - 1):
            tensors[f"layer{i}.weight"] = (widths[i + 1], widths[i])
            tensors[f"layer{i}.bias"] = (widths[i + 1],)
        return tensors

    def __init__(self, params, grads, widths, int activation, bint cross_entropy):
        cdef dict places
        cdef Dense *layer
        cdef Py_ssize_t i, place
        Model.__init__(self, kernels, params, grads)
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths = {widths}: at least the inputs and the outputs, each 1 or more")
        if not 0 <= activation < len(ACTIVATIONS):
            raise ValueError(f"activation = {activation} is outside [0, {len(ACTIVATIONS)})")
        places = self.places(MLP.tensors(widths))
        self.activation, self.cross_entropy = activation, cross_entropy
        self.depth = len(widths) - 1
        self.layer_memory = Buffer()
        self.layers = <Dense *>self.layer_memory.array(self.depth, sizeof(Dense))
        for i in range(self.depth):
            layer = &self.layers[i]
            layer.n_in, layer.n_out = widths[i], widths[i + 1]
            layer.ld = padded(layer.n_out)
            place = places[f"layer{i}.weight"]
            layer.weight, layer.dweight = <const real *>self.params + place, <real *>self.grads + place
            place = places[f"layer{i}.bias"]
            layer.bias, layer.dbias = <const real *>self.params + place, <real *>self.grads + place
        self.n_out = widths[self.depth]

    cdef int bind(self, Batch batch, Py_ssize_t predictions) except -1:
        cdef Rows *rows = &(<ArrayBatch?>batch).rows
        if self.cross_entropy and not 0 <= rows.largest_class < self.n_out:
            raise ValueError(f"the largest class id in y is {rows.largest_class}, "
                             f"the model takes ids in [0, {self.n_out})")
        if not self.cross_entropy and rows.n_out != self.n_out:
            raise ValueError(f"y has {rows.n_out} columns, the model gives {self.n_out}")
        return self.bind_inputs(batch, predictions)

    cdef int bind_inputs(self, Batch batch, Py_ssize_t predictions) except -1:
        cdef Rows *rows = &(<ArrayBatch?>batch).rows
        if rows.itemsize != sizeof(real):
            raise TypeError(f"X is float{8 * rows.itemsize}, the model float{8 * sizeof(real)}")
        if rows.n_in != self.layers[0].n_in:
            raise ValueError(f"X has {rows.n_in} columns, the model takes {self.layers[0].n_in}")
        self.batch = batch
        self.rows = rows
        return self.make_room(round_up(predictions, PANEL))

    cdef void lay_out(self, Arena *arena, Py_ssize_t N) noexcept nogil:
        cdef Py_ssize_t n_out = self.layers[self.depth - 1].n_out, i
        cdef Dense *layer
        for i in range(self.depth):
            layer = &self.layers[i]
            layer.panels = take_values(arena, round_up(layer.n_out, PANEL), layer.n_in + 1)
            layer.weight_rows = take_values(arena, layer.n_out, padded(layer.n_in))
            layer.z = take_values(arena, N, layer.ld)
            layer.dz = take_values(arena, N, layer.ld)
        self.losses = <double *>take(arena, N, sizeof(double))
        if self.cross_entropy:
            self.exp = take_values(arena, N, n_out)
            self.softmax = <Softmax *>take(arena, N // PANEL, sizeof(Softmax))

    cdef void write_outputs(self, void *out) noexcept nogil:
        cdef Dense *last = &self.layers[self.depth - 1]
        cdef Py_ssize_t n
        self.forward_all(False)
        for n in range(self.rows.N):
            memcpy(<real *>out + n * self.n_out, last.z + n * last.ld, self.n_out * sizeof(real))

    cdef Py_ssize_t work_for(self, Py_ssize_t rows) noexcept nogil:
        """Floating-point operations of forward for so many rows."""
        cdef Py_ssize_t i, work = 0
        for i in range(self.depth):
            work += 2 * self.layers[i].n_out * self.layers[i].n_in
        return work * rows

    cdef double forward(self) noexcept nogil:
        self.forward_all(True)
        return weighted_sum(self.losses, self.rows.weights, self.rows.N)

    cdef void forward_all(self, bint score) noexcept nogil:
        """Every layer for every row, and with `score` the losses."""
        cdef Py_ssize_t N = self.rows.N
        cdef int threads = threads_for(self.work_for(N)), t
        if threads == 1:
            self.lay_out_weights(0, 1)
            self.forward_rows(0, N, score)
            return
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            self.lay_out_weights(t, threads)
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            self.forward_rows(share(N, t, threads, PANEL), share(N, t + 1, threads, PANEL), score)

    cdef void lay_out_weights(self, int part, int parts) noexcept nogil:
        """Copy the weights as forward and backward read them, for one part of each layer's outputs."""
        cdef Py_ssize_t i, p, j, first, last, n_in, outputs
        cdef Dense *layer
        cdef real *panel
        for i in range(self.depth):
            layer = &self.layers[i]
            n_in = layer.n_in
            first, last = share(layer.n_out, part, parts, PANEL), share(layer.n_out, part + 1, parts, PANEL)
            for p in range(tiles(last - first, PANEL)):
                j = first + PANEL * p
                outputs = min(last - j, PANEL)
                panel = layer.panels + j * (n_in + 1)
                transpose_rows(layer.weight + j * n_in, n_in, outputs, n_in, panel)
                memset(panel + PANEL * n_in, 0, PANEL * sizeof(real))
                memcpy(panel + PANEL * n_in, layer.bias + j, outputs * sizeof(real))
            if i > 0:
                copy_rows(layer.weight + first * n_in, last - first, n_in,
                          layer.weight_rows + first * padded(n_in), padded(n_in))

    cdef void forward_rows(self, Py_ssize_t first, Py_ssize_t last, bint score) noexcept nogil:
        """The layers, and with `score` the losses, for the rows first .. last."""
        cdef const real *a = <const real *>self.rows.x + first * self.rows.ld
        cdef Py_ssize_t lda = self.rows.ld, rows = last - first, i, p, j, n
        cdef Dense *layer = NULL
        cdef real *panel
        cdef real *z = NULL
        for i in range(self.depth):
            layer = &self.layers[i]
            z = layer.z + first * layer.ld
            for p in range(tiles(layer.n_out, PANEL)):
                j = PANEL * p
                panel = layer.panels + j * (layer.n_in + 1)
                matmul(rows, PANEL, layer.n_in, a, lda, 1, PANEL, panel, PANEL, z + j, layer.ld, False)
                if i < self.depth - 1:
                    add_bias_and_activate(self.activation, z + j, layer.ld, rows, panel + PANEL * layer.n_in)
                else:
                    add_bias(z + j, layer.ld, rows, panel + PANEL * layer.n_in)
            a, lda = z, layer.ld
        if not score:
            return
        if not self.cross_entropy:
            squared_error(z, layer.ld, <const real *>self.rows.targets + first * layer.n_out, rows, layer.n_out,
                          layer.dz + first * layer.ld, self.losses + first)
            return
        for p in range(first // PANEL, tiles(last, PANEL)):
            n = PANEL * p
            panel = self.exp + n * layer.n_out
            rows = min(last - n, PANEL)
            transpose_rows(layer.z + n * layer.ld, layer.ld, rows, layer.n_out, panel)
            softmax_start(&self.softmax[p])
            softmax_add(panel, layer.n_out, 0, self.rows.classes + n, rows, &self.softmax[p])
            softmax_losses(&self.softmax[p], rows, self.losses + n)

    cdef void backward(self) noexcept nogil:
        cdef Py_ssize_t N = self.rows.N
        cdef int threads = threads_for(2 * self.work_for(N)), t
        if threads == 1:
            self.backward_rows(0, N)
            self.backward_weights(0, 1)
            return
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            self.backward_rows(share(N, t, threads, PANEL), share(N, t + 1, threads, PANEL))
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            self.backward_weights(t, threads)

    cdef void backward_rows(self, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
        """dz of every layer, the last one first, for the rows first .. last."""
        cdef Dense *layer = &self.layers[self.depth - 1]
        cdef Dense *before
        cdef Py_ssize_t n, p, i, j, rows
        cdef real *panel
        cdef real *dz
        cdef double scale
        if self.cross_entropy:
            for p in range(first // PANEL, tiles(last, PANEL)):
                n = PANEL * p
                rows = min(last - n, PANEL)
                panel = self.exp + n * layer.n_out
                softmax_grad(panel, layer.n_out, 0, self.rows.classes + n, self.rows.weights + n, rows,
                             &self.softmax[p])
                transpose_panel(panel, rows, layer.n_out, layer.dz + n * layer.ld, layer.ld)
        else:
            for n in range(first, last):
                scale = 2.0 * self.rows.weights[n] / <double>layer.n_out
                for i in range(layer.n_out):
                    layer.dz[n * layer.ld + i] *= scale
        for i in range(self.depth - 1, 0, -1):
            layer, before = &self.layers[i], &self.layers[i - 1]
            for p in range(tiles(layer.n_in, PANEL)):
                j = PANEL * p
                dz = before.dz + first * before.ld + j
                matmul(last - first, PANEL, layer.n_out, layer.dz + first * layer.ld, layer.ld, 1, PANEL,
                       layer.weight_rows + j, padded(layer.n_in), dz, before.ld, False)
                activation_backward_rows(self.activation, dz, before.z + first * before.ld + j, before.ld, last - first)

    cdef void backward_weights(self, int part, int parts) noexcept nogil:
        """The gradients of the weights of one part of each layer's outputs, summed over all rows in order."""
        cdef const real *a = <const real *>self.rows.x
        cdef real one = 1.0
        cdef Py_ssize_t lda = self.rows.ld, N = self.rows.N, i, first, last
        cdef Dense *layer
        for i in range(self.depth):
            layer = &self.layers[i]
            first, last = share(layer.n_out, part, parts, PANEL), share(layer.n_out, part + 1, parts, PANEL)
            matmul(last - first, layer.n_in, N, layer.dz + first, 1, layer.ld, PANEL * layer.ld, a, lda,
                   layer.dweight + first * layer.n_in, layer.n_in, self.add)
            # The bias is the weight of an input that is always 1.
            matmul(1, last - first, N, &one, 0, 0, 0, layer.dz + first, layer.ld, layer.dbias + first, PANEL, self.add)
            a, lda = layer.z, layer.ld
