# What a model over plain arrays is trained on: the rows of X and y, and a batch of them.
#
# Uses: declarations, floats, tokens.

cdef class ArrayData(Data):
    """X (N, n_in) with targets (N, n_out), or with class ids (N,), or with neither, for predictions.

    X and targets are float64 or float32, as the model is.
    """
    cdef object arrays                      # X and targets (or None), as they came
    cdef Floats X
    cdef Floats targets
    cdef const int64_t[::1] classes
    cdef const double[::1] weights          # of each row, or None where all weigh 1
    cdef readonly Py_ssize_t n_in
    cdef readonly Py_ssize_t n_out          # columns of targets, or 0
    cdef readonly int64_t largest_class     # of the class ids, or -1

    def __init__(self, X, targets=None, const int64_t[::1] classes=None, const double[::1] weights=None):
        cdef Py_ssize_t i
        self.arrays, self.classes, self.weights = (X, targets), classes, weights
        self.X = floats_of(X, 0, 2, False)
        self.n_examples, self.n_in, self.longest = self.X.rows, self.X.columns, 1
        self.largest_class = -1
        if targets is not None:
            self.targets = floats_of(targets, self.X.itemsize, 2, False)
            self.n_out = self.targets.columns
            if self.targets.rows != self.n_examples:
                raise ValueError(f"X has {self.n_examples} rows, y has {self.targets.rows}")
        if classes is not None:
            if classes.shape[0] != self.n_examples:
                raise ValueError(f"X has {self.n_examples} rows, y has {classes.shape[0]}")
            for i in range(self.n_examples):
                if classes[i] < 0:
                    raise IndexError(f"y[{i}] = {classes[i]} is negative")
                self.largest_class = max(self.largest_class, classes[i])
        if weights is not None and weights.shape[0] != self.n_examples:
            raise ValueError(f"X has {self.n_examples} rows, weights {weights.shape[0]}")

    def __reduce__(self):
        return remade("ArrayData", (*self.arrays, as_array(self.classes), as_array(self.weights)))

    def fingerprint(self):
        X, targets = self.arrays
        checksum = crc32(X, self.n_in)
        if targets is not None:
            checksum = crc32(targets, checksum)
        if self.classes is not None:
            checksum = crc32(self.classes, checksum)
        if self.weights is not None:
            checksum = crc32(self.weights, checksum)
        return checksum

    def predictions(self, const int64_t[::1] indices not None):
        return indices.shape[0]

    cdef void fill(self, Rows *rows, const int64_t *indices, Py_ssize_t count, double total) noexcept nogil:
        """Write the rows `indices` of X and y; with weights of their own, `total` is what they weigh together."""
        cdef Py_ssize_t size = self.n_in * self.X.itemsize, out = self.n_out * self.X.itemsize, n
        cdef bint weighs = self.weights is not None
        if weighs:
            total = 0.0
            for n in range(count):
                total += self.weights[indices[n]]
        rows.total = total
        for n in range(count):
            memcpy(<char *>rows.x + n * rows.ld * rows.itemsize, <char *>self.X.data + indices[n] * size, size)
            if self.n_out:
                memcpy(<char *>rows.targets + n * out, <char *>self.targets.data + indices[n] * out, out)
            elif self.largest_class >= 0:
                rows.classes[n] = self.classes[indices[n]]
            rows.weights[n] = (self.weights[indices[n]] if weighs else 1.0) / total
        rows.N = count


cdef class ArrayBatch(Batch):
    """A batch of rows of an ArrayData."""

    def __init__(self, ArrayData data not None):
        self.data, self.work = data, Buffer()
        self.rows.n_in, self.rows.n_out, self.rows.largest_class = data.n_in, data.n_out, data.largest_class
        self.rows.itemsize = data.X.itemsize
        self.rows.ld = padded_to(data.n_in, panel_of(data.X.itemsize))

    cdef Py_ssize_t reserve(self, Py_ssize_t examples) except -1:
        cdef Py_ssize_t n = round_up(examples, WIDEST_PANEL)
        cdef Arena *arena = &self.work.arena
        while self.work.lays_out():
            self.rows.x = take(arena, times(n, self.rows.ld), self.rows.itemsize)
            self.rows.targets = take(arena, times(n, self.rows.n_out), self.rows.itemsize)
            self.rows.weights = <double *>take(arena, n, sizeof(double))
            self.rows.classes = <int64_t *>take(arena, n, sizeof(int64_t))
        return examples

    cdef void fill(self, const int64_t *indices, Py_ssize_t count, double total) noexcept nogil:
        (<ArrayData>self.data).fill(&self.rows, indices, count, total)
        self.n_examples = self.n_predictions = count
