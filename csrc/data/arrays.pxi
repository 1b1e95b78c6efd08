# What a model over plain arrays is trained on: the rows of X and y, and a batch of them.
#
# Uses: declarations, tokens.

cdef class ArrayData(Data):
    """X (N, n_in) with targets (N, n_out), or with class ids (N,), or with neither, for predictions."""
    cdef const double[:, ::1] X
    cdef const double[:, ::1] targets
    cdef const int64_t[::1] classes
    cdef readonly Py_ssize_t n_in
    cdef readonly Py_ssize_t n_out          # columns of targets, or 0
    cdef readonly int64_t largest_class     # of the class ids, or -1

    def __init__(self, const double[:, ::1] X not None, const double[:, ::1] targets=None,
                 const int64_t[::1] classes=None):
        cdef Py_ssize_t i
        self.n_examples, self.n_in, self.longest = X.shape[0], X.shape[1], 1
        self.X, self.targets, self.classes = X, targets, classes
        self.largest_class = -1
        if targets is not None:
            self.n_out = targets.shape[1]
            if targets.shape[0] != self.n_examples:
                raise ValueError(f"X has {self.n_examples} rows, y has {targets.shape[0]}")
        if classes is not None:
            if classes.shape[0] != self.n_examples:
                raise ValueError(f"X has {self.n_examples} rows, y has {classes.shape[0]}")
            for i in range(self.n_examples):
                if classes[i] < 0:
                    raise IndexError(f"y[{i}] = {classes[i]} is negative")
                self.largest_class = max(self.largest_class, classes[i])

    def __reduce__(self):
        return remade("ArrayData", (as_array(self.X), as_array(self.targets), as_array(self.classes)))

    def fingerprint(self):
        checksum = crc32(self.X, self.n_in)
        if self.targets is not None:
            checksum = crc32(self.targets, checksum)
        if self.classes is not None:
            checksum = crc32(self.classes, checksum)
        return checksum

    def predictions(self, const int64_t[::1] indices not None):
        return indices.shape[0]

    cdef void fill(self, Rows *rows, const int64_t *indices, Py_ssize_t count, double total) noexcept nogil:
        """Write the rows `indices` of X and y."""
        cdef Py_ssize_t n
        for n in range(count):
            memcpy(rows.x + n * rows.ld, &self.X[indices[n], 0], self.n_in * sizeof(double))
            if self.n_out:
                memcpy(rows.targets + n * self.n_out, &self.targets[indices[n], 0], self.n_out * sizeof(double))
            elif self.largest_class >= 0:
                rows.classes[n] = self.classes[indices[n]]
            rows.weights[n] = 1.0 / total
        rows.N = count


cdef class ArrayBatch(Batch):
    """A batch of rows of an ArrayData."""

    def __init__(self, ArrayData data not None):
        self.data, self.work = data, Buffer()
        self.rows.n_in, self.rows.n_out, self.rows.largest_class = data.n_in, data.n_out, data.largest_class

    cdef Py_ssize_t reserve(self, Py_ssize_t examples) except -1:
        cdef Py_ssize_t n = round_up(examples, PANEL)
        cdef Arena *arena = &self.work.arena
        self.rows.ld = padded(self.rows.n_in)
        while self.work.lays_out():
            self.rows.x = take_values(arena, n, self.rows.ld)
            self.rows.targets = take_values(arena, n, self.rows.n_out)
            self.rows.weights = <double *>take(arena, n, sizeof(double))
            self.rows.classes = <int64_t *>take(arena, n, sizeof(int64_t))
        return examples

    cdef void fill(self, const int64_t *indices, Py_ssize_t count, double total) noexcept nogil:
        (<ArrayData>self.data).fill(&self.rows, indices, count, total)
        self.n_examples = self.n_predictions = count
