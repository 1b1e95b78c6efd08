# What a model of the user's own is trained on: rows of any arrays, which NumPy gathers.
#
# Uses: declarations, tokens.

cdef class AnyData(Data):
    """X, one array or several, and y, an array or None: the first axis of each is the rows, whatever the others are."""
    cdef readonly tuple X
    cdef readonly object y
    cdef readonly bint single       # whether X was given as one array, and is handed out so

    def __init__(self, tuple X not None, y, bint single):
        self.X, self.y, self.single = X, y, single
        self.n_examples, self.longest = len(X[0]), 1

    def __reduce__(self):
        return remade("AnyData", (self.X, self.y, self.single))

    def fingerprint(self):
        checksum = 0 if self.single else len(self.X)
        for array in (*self.X, self.y):
            if array is not None:
                checksum = crc32(array.reshape(-1).view("u1"), crc32(f"{array.dtype}{array.shape}".encode(), checksum))
        return checksum

    def predictions(self, const int64_t[::1] indices not None):
        return indices.shape[0]


cdef class AnyBatch(Batch):
    """A batch of rows of an AnyData."""
    cdef object places              # (capacity,) int64: which rows
    cdef int64_t *place             # the same memory
    cdef double total               # each row weighs 1 / total
    cdef object which               # places of the last rows, and their weights, (rows,) float64, read-only: made anew
    cdef object weights             # only where their number or the total is another
    cdef Py_ssize_t count
    cdef double weighed
    cdef object takes               # the method take of each array of X
    cdef object take_y

    def __init__(self, AnyData data not None):
        cdef list takes = []
        for array in data.X:
            takes.append(array.take)
        self.data, self.takes = data, takes
        self.take_y = None if data.y is None else data.y.take

    cdef Py_ssize_t reserve(self, Py_ssize_t examples) except -1:
        cdef int64_t[::1] places
        if self.places is None or len(self.places) < examples:
            from numpy import zeros

            self.places = zeros(examples, "i8")
            places = self.places
            self.place = &places[0]
            self.count = 0
        return examples

    cdef void fill(self, const int64_t *indices, Py_ssize_t count, double total) noexcept nogil:
        memcpy(self.place, indices, count * sizeof(int64_t))
        self.n_examples = self.n_predictions = count
        self.total = total

    cdef tuple rows(self):
        """(X, y, weights) of the examples taken: X and y are new arrays each time, which their user may keep."""
        if self.count != self.n_examples or self.weighed != self.total:
            from numpy import full

            self.weights = full(self.n_examples, 1.0 / self.total)
            self.weights.setflags(False)
            self.which = self.places[:self.n_examples]
            self.count, self.weighed = self.n_examples, self.total
        y = None if self.take_y is None else self.take_y(self.which, 0)
        if (<AnyData>self.data).single:
            return self.takes[0](self.which, 0), y, self.weights
        X = []
        for take in self.takes:
            X.append(take(self.which, 0))
        return tuple(X), y, self.weights
