# Memory for a workspace.  Its layout is written once, as code that takes one array after the other and runs twice: the
# first time only the bytes are counted, the second time the arrays are carved from memory of that size.
#
#     while buffer.lays_out():
#         x = <double *>take(&buffer.arena, times(N, D), sizeof(double))
#
# Sizes that come from the user or grow with the batch are multiplied by `times`, which does not overflow.
#
# Uses: declarations.

cdef class Buffer:
    """The memory of an arena.  It never shrinks, and is zeroed when it grows, which happens before a step begins: no
    step allocates.
    """
    def __dealloc__(self):
        PyMem_RawFree(self.memory)

    cdef bint lays_out(self) except -1:
        """True twice, for the caller to take from `arena` all that it needs, first counted and then carved; then False.

        Carving leaves the contents of memory as they are; memory that had to grow is all zero.
        """
        cdef Arena *arena = &self.arena
        cdef size_t counted = arena.used
        cdef uintptr_t last = CACHE_LINE - 1
        cdef bint failed = arena.failed
        cdef void *memory
        arena.used, arena.failed = 0, False
        if self.turn == 0:
            arena.base = NULL
            self.turn = 1
            return True
        if self.turn == 2:
            self.turn = 0
            if failed or counted != arena.size:
                raise SystemError(f"{arena.size} bytes of workspace were counted, and others carved")
            return False
        self.turn = 0
        if failed:
            raise MemoryError("the workspace has more bytes than can be addressed")
        if counted > self.size or self.memory == NULL:
            memory = PyMem_RawMalloc(counted + CACHE_LINE)
            if memory == NULL:
                raise MemoryError(f"{counted} bytes of workspace")
            PyMem_RawFree(self.memory)
            self.memory, self.size = memory, counted
            memset(memory, 0, counted + CACHE_LINE)
        arena.base = <char *>((<uintptr_t>self.memory + last) & ~last)
        arena.size = counted
        self.turn = 2
        return True

    cdef void *array(self, Py_ssize_t n, size_t item) except NULL:
        """Room for n items of that many bytes, and nothing else."""
        cdef void *taken = NULL
        while self.lays_out():
            taken = take(&self.arena, n, item)
        return taken


def carve(list counted not None, list carved not None):
    """The places of arrays of `carved` (items, bytes of an item) in memory laid out for `counted`: for tests."""
    cdef Buffer buffer = Buffer()
    cdef list places = []
    cdef Py_ssize_t n
    cdef size_t item
    while buffer.lays_out():
        places.clear()
        for n, item in (carved if buffer.arena.base != NULL else counted):
            places.append(<uintptr_t>take(&buffer.arena, n, item))
    return places
