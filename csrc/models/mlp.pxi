# The MLP: linear layers with an activation between them, over plain arrays; without a hidden layer, linear or softmax
# regression.
#
# Examples stay in rows, x[example][feature], from the input to the loss and back: the bias, the activation and its
# derivative then run along memory, and no activation is transposed.  The weights are transposed once a step, into
# panels of PANEL outputs, weight[panel][input][output], which the matrix product reads in the order of memory.  Strides
# are padded to whole panels, so a width that is no multiple of PANEL costs as much as the next multiple.
#
# Uses: declarations, simd, matmul, cross_entropy, activation.

cdef enum:              # in the order of LOSSES
    MSE
    CROSS_ENTROPY
    SQUARED_ERROR
    LOG_LOSS
    BINARY_LOG_LOSS
    POISSON

# The last four are scikit-learn's, for fastloop/sklearn.py: half the squared error, the cross-entropy of a softmax and
# of logistic outputs, each probability clipped to [eps, 1 - eps], and half the Poisson deviance of exp(outputs).  The
# gradient of each by the outputs is taken to be the activation less the target.
LOSSES = ("mse", "cross_entropy", "squared_error", "log_loss", "binary_log_loss", "poisson")

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


cdef inline double clipped(double loss) noexcept nogil:
    """-log(p) where p is clipped to [eps, 1 - eps], of the precision."""
    cdef double eps = 2.0**-52 if sizeof(real) == sizeof(double) else 2.0**-23
    return min(max(loss, -log1p(-eps)), -log(eps)) if loss == loss else loss


cdef void logistic_losses(const real *z, Py_ssize_t ld, const real *targets, Py_ssize_t rows, Py_ssize_t n_out,
                          real *difference, double *losses) noexcept nogil:
    """difference (rows, ld) = 1 / (1 + exp(-z)) - targets, which are 0 or 1; losses (rows,): the sum over the outputs
    of the cross-entropy."""
    cdef Py_ssize_t n, i
    cdef double e, x, p, q, total
    for n in range(rows):
        total = 0.0
        for i in range(n_out):
            x = z[n * ld + i]
            e = exp(-fabs(x))
            p, q = 1.0 / (1.0 + e), e / (1.0 + e)
            difference[n * ld + i] = (p if x >= 0.0 else q) - targets[n * n_out + i]
            # -log of the probability of the target: of 1 / (1 + e) where x has the target's sign
            x = log1p(e) + (0.0 if (x >= 0.0) == (targets[n * n_out + i] > 0.5) else fabs(x))
            total += clipped(x)
        losses[n] = total


cdef void poisson_losses(const real *z, Py_ssize_t ld, const real *targets, Py_ssize_t rows, Py_ssize_t n_out,
                         real *difference, double *losses) noexcept nogil:
    """difference (rows, ld) = exp(z) - targets; losses (rows,): the sum over the outputs of y log(y / p) - y + p."""
    cdef Py_ssize_t n, i
    cdef double y, p, total
    for n in range(rows):
        total = 0.0
        for i in range(n_out):
            y, p = targets[n * n_out + i], exp(z[n * ld + i])
            difference[n * ld + i] = p - y
            total += (y * (log(y) - z[n * ld + i]) if y > 0.0 else 0.0) - y + p
        losses[n] = total


cdef void add_scaled(double scale, const real *x, Py_ssize_t n, real *y) noexcept nogil:
    """y (n,) += scale x."""
    cdef real scale_ = <real>scale
    cdef Py_ssize_t i
    for i in range(n):
        y[i] += scale_ * x[i]


cdef class MLP(ArrayModel):
    cdef readonly Py_ssize_t depth      # linear layers
    cdef int activation                 # between the layers
    cdef int loss                       # of LOSSES
    cdef bint softmax_loss              # whether y holds class ids
    cdef double alpha                   # alpha / 2 times the sum of the squared weights, over the rows' total, is added
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

    def __init__(self, params, grads, widths, int activation, int loss, double alpha=0.0):
        cdef dict places
        cdef Dense *layer
        cdef Py_ssize_t i, place
        Model.__init__(self, kernels, params, grads)
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths = {widths}: at least the inputs and the outputs, each 1 or more")
        if not 0 <= activation < len(ACTIVATIONS):
            raise ValueError(f"activation = {activation} is outside [0, {len(ACTIVATIONS)})")
        if not 0 <= loss < len(LOSSES):
            raise ValueError(f"loss = {loss} is outside [0, {len(LOSSES)})")
        places = self.places(MLP.tensors(widths))
        self.activation, self.loss, self.alpha = activation, loss, alpha
        self.softmax_loss = loss == CROSS_ENTROPY or loss == LOG_LOSS
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
        if self.softmax_loss and not 0 <= rows.largest_class < self.n_out:
            raise ValueError(f"the largest class id in y is {rows.largest_class}, "
                             f"the model takes ids in [0, {self.n_out})")
        if not self.softmax_loss and rows.n_out != self.n_out:
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
        if self.softmax_loss:
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
        return weighted_sum(self.losses, self.rows.weights, self.rows.N) + self.penalty()

    cdef double penalty(self) noexcept nogil:
        """What alpha adds to the loss."""
        cdef double total = 0.0
        cdef Py_ssize_t i
        if self.alpha == 0.0:
            return 0.0
        for i in range(self.depth):
            total += fl_sum_squares(self.layers[i].weight, self.layers[i].n_out * self.layers[i].n_in, 1.0)
        return 0.5 * self.alpha * total / self.rows.total

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
        if not self.softmax_loss:
            self.score_rows(first, rows)
            return
        for p in range(first // PANEL, tiles(last, PANEL)):
            n = PANEL * p
            panel = self.exp + n * layer.n_out
            rows = min(last - n, PANEL)
            transpose_rows(layer.z + n * layer.ld, layer.ld, rows, layer.n_out, panel)
            softmax_start(&self.softmax[p])
            softmax_add(panel, layer.n_out, 0, self.rows.classes + n, rows, &self.softmax[p])
            softmax_losses(&self.softmax[p], rows, self.losses + n)
            if self.loss == LOG_LOSS:
                for i in range(n, n + rows):
                    self.losses[i] = clipped(self.losses[i])

    cdef void score_rows(self, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
        """The losses of so many rows from `first` on, and in the last layer's dz the activation less the target."""
        cdef Dense *layer = &self.layers[self.depth - 1]
        cdef Py_ssize_t n
        cdef const real *z = layer.z + first * layer.ld
        cdef const real *targets = <const real *>self.rows.targets + first * layer.n_out
        cdef real *dz = layer.dz + first * layer.ld
        if self.loss == BINARY_LOG_LOSS:
            logistic_losses(z, layer.ld, targets, rows, layer.n_out, dz, self.losses + first)
        elif self.loss == POISSON:
            poisson_losses(z, layer.ld, targets, rows, layer.n_out, dz, self.losses + first)
        else:
            squared_error(z, layer.ld, targets, rows, layer.n_out, dz, self.losses + first)
            for n in range(first, first + rows if self.loss == SQUARED_ERROR else first):
                self.losses[n] *= 0.5

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
        if self.softmax_loss:
            for p in range(first // PANEL, tiles(last, PANEL)):
                n = PANEL * p
                rows = min(last - n, PANEL)
                panel = self.exp + n * layer.n_out
                softmax_grad(panel, layer.n_out, 0, self.rows.classes + n, self.rows.weights + n, rows,
                             &self.softmax[p])
                transpose_panel(panel, rows, layer.n_out, layer.dz + n * layer.ld, layer.ld)
        else:
            for n in range(first, last):
                scale = self.rows.weights[n] * (2.0 / <double>layer.n_out if self.loss == MSE else 1.0)
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
            if self.alpha != 0.0:
                add_scaled(self.alpha / self.rows.total, layer.weight + first * layer.n_in,
                           (last - first) * layer.n_in, layer.dweight + first * layer.n_in)
            a, lda = layer.z, layer.ld
