# What every model is trained on: the abstract data and batch; and documents as token ids, packed end to end in a batch.
#
# Data never change once they are made, so copy returns the same object.  A pickle holds the arguments they were made
# with and the name of the class, which fastloop._core looks up: another CPU may load another engine.
#
# Uses: declarations.

cdef object crc32           # hides it from the module's public names, which every engine takes over
from zlib import crc32

cdef tuple remade(str name, tuple arguments, tuple taken=None):
    """What __reduce__ returns."""
    from fastloop import _core

    return _core.remade, (name, arguments, taken)


cdef object as_array(view):
    """A memoryview as a NumPy array over the same memory; None stays."""
    from numpy import asarray

    return None if view is None else asarray(view)


cdef class Data:
    """Examples that batches are filled from."""
    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        return f"<{type(self).__name__} of {self.n_examples:,} examples>"

    def predictions(self, const int64_t[::1] indices not None):
        """How many predictions these examples give."""
        raise NotImplementedError

    def fingerprint(self):
        """A checksum of the contents: a resumed run must see the same data."""
        raise NotImplementedError


cdef class Batch:
    """What one forward pass reads.  A model states which kind it takes."""

    def __repr__(self):
        return f"<{type(self).__name__} of {self.n_examples:,} examples, {self.n_predictions:,} predictions>"

    def __reduce__(self):
        return remade(type(self).__name__, (self.data,), self.taken)

    def take(self, const int64_t[::1] indices not None, double total):
        """Fill with these examples; for a batch made by hand (a fit fills its batches in compiled code)."""
        cdef Py_ssize_t i, count = indices.shape[0]
        check_free("take()", self.readers > 0)
        for i in range(count):
            if not 0 <= indices[i] < self.data.n_examples:
                raise IndexError(f"indices[{i}] = {indices[i]} is outside [0, {self.data.n_examples})")
        self.fills += 1
        self.reserve(count)
        self.fill(&indices[0] if count else NULL, count, total)
        self.taken = bytes(indices), total

    cdef Py_ssize_t reserve(self, Py_ssize_t examples) except -1:
        """Allocate for so many examples, so that fill need not; return the most predictions that they can give."""
        raise NotImplementedError

    cdef void fill(self, const int64_t *indices, Py_ssize_t count, double total) noexcept nogil:
        """Take the examples `indices`, each weighing 1 / total in the loss."""
        pass


cdef class TokenData(Data):
    """Token ids, and where the examples lie in them.

    Documents lie end to end: document i is ids[starts[i] : starts[i + 1] + 1], from BOS to BOS, and neighbours share
    the BOS between them.  It gives min(starts[i + 1] - starts[i], block_size) predictions.  With starts None the ids
    are one text, and example i is the window of `block_size` predictions that begins at i.
    """
    cdef const int32_t[::1] ids
    cdef const int64_t[::1] starts
    cdef readonly Py_ssize_t block_size
    cdef readonly Py_ssize_t n_ids          # all ids are below this
    cdef object checksum
    def __init__(self, const int32_t[::1] ids not None, const int64_t[::1] starts, Py_ssize_t block_size):
        cdef Py_ssize_t i
        for i in range(ids.shape[0]):
            if ids[i] < 0:
                raise IndexError(f"ids[{i}] = {ids[i]} is negative")
            self.n_ids = max(self.n_ids, ids[i] + 1)
        self.ids = ids
        self.starts = starts
        self.block_size = block_size
        self.windows = starts is None
        if self.windows:
            if ids.shape[0] <= block_size:
                raise ValueError(f"a text of {ids.shape[0]} tokens holds no window of {block_size} predictions")
            self.n_examples = ids.shape[0] - block_size
            self.longest = block_size
            return
        self.n_examples = starts.shape[0] - 1
        if self.n_examples < 1 or starts[0] < 0 or starts[self.n_examples] >= ids.shape[0]:
            raise ValueError(f"starts ({starts.shape[0]},) must lead into ids ({ids.shape[0]},)")
        for i in range(self.n_examples):
            if starts[i + 1] <= starts[i]:
                raise ValueError(f"starts[{i + 1}] = {starts[i + 1]} must be greater than {starts[i]}")
            self.longest = max(self.longest, self.length(i))

    def in_turn(self, const int64_t[::1] starts not None):
        """The same ids cut into documents that begin at `starts`; for evaluation."""
        return TokenData(self.ids, starts, self.block_size)

    def __reduce__(self):
        return remade("TokenData", (as_array(self.ids), as_array(self.starts), self.block_size))

    def fingerprint(self):
        if self.checksum is None:
            self.checksum = crc32(b"windows" if self.windows else self.starts, crc32(self.ids, self.block_size))
        return self.checksum

    def predictions(self, const int64_t[::1] indices not None):
        cdef Py_ssize_t i, total = 0
        for i in range(indices.shape[0]):
            total += self.length(indices[i])
        return total

    cdef void fill(self, Tokens *tokens, const int64_t *indices, Py_ssize_t count, double total) noexcept nogil:
        """Write the documents `indices` end to end."""
        cdef Py_ssize_t b, t, n = 0, length
        cdef const int32_t *ids
        cdef double weight
        for b in range(count):
            ids = &self.ids[self.begin(indices[b])]
            length = self.length(indices[b])
            weight = 1.0 / (total * <double>length)
            tokens.first[b] = n
            for t in range(length):
                tokens.inputs[n] = ids[t]
                tokens.targets[n] = ids[t + 1]
                tokens.positions[n] = t
                tokens.weights[n] = weight
                n += 1
        tokens.first[count] = n
        tokens.N, tokens.B = n, count

    cdef inline Py_ssize_t begin(self, Py_ssize_t i) noexcept nogil:
        return i if self.windows else self.starts[i]

    cdef inline Py_ssize_t length(self, Py_ssize_t i) noexcept nogil:
        return self.block_size if self.windows else min(self.starts[i + 1] - self.starts[i], self.block_size)


cdef class TokenBatch(Batch):
    """A batch of documents of a TokenData, end to end, N positions in all."""

    def __init__(self, TokenData data not None):
        self.data, self.work = data, Buffer()
        self.tokens.n_ids, self.tokens.block_size = data.n_ids, data.block_size

    def arrays(self):
        """Copies of (inputs, targets, positions, weights), each (N,), as lists."""
        cdef Py_ssize_t n
        cdef Tokens b = self.tokens
        inputs, targets, positions, weights = [0] * b.N, [0] * b.N, [0] * b.N, [0.0] * b.N
        for n in range(b.N):
            inputs[n], targets[n], positions[n], weights[n] = b.inputs[n], b.targets[n], b.positions[n], b.weights[n]
        return inputs, targets, positions, weights

    cdef Py_ssize_t reserve(self, Py_ssize_t examples) except -1:
        cdef Py_ssize_t n = round_up(times(examples, self.data.longest), WIDEST_PANEL)
        cdef Arena *arena = &self.work.arena
        while self.work.lays_out():
            self.tokens.inputs = <int64_t *>take(arena, n, sizeof(int64_t))
            self.tokens.targets = <int64_t *>take(arena, n, sizeof(int64_t))
            self.tokens.positions = <int64_t *>take(arena, n, sizeof(int64_t))
            self.tokens.weights = <double *>take(arena, n, sizeof(double))
            self.tokens.first = <int64_t *>take(arena, examples + 1, sizeof(int64_t))
        return n

    cdef void fill(self, const int64_t *indices, Py_ssize_t count, double total) noexcept nogil:
        (<TokenData>self.data).fill(&self.tokens, indices, count, total)
        self.n_examples, self.n_predictions = count, self.tokens.N
