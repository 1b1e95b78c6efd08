# Arrays of values from Python: float64 or float32, as the engine is that reads them.
#
# Uses: declarations.

cdef class Floats:
    """A C-contiguous array of float64 or float32 from Python, kept alive for `data`."""

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef Floats floats_of(array, size_t itemsize, int ndim, bint writable):
    """The values of an array of that size and number of dimensions; raises TypeError or ValueError for anything else.

    itemsize 0: of either.
    """
    cdef Floats x = Floats.__new__(Floats)
    PyObject_GetBuffer(array, &x.view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0))
    x.held = True
    x.itemsize = float_size(&x.view)
    if x.itemsize == 0 or x.itemsize != (itemsize or x.itemsize) or x.view.ndim != ndim:
        raise ValueError(f"an array of {float_name(itemsize)} with {ndim} dimensions expected, got one of "
                         f"{float_name(x.itemsize) if x.itemsize else repr(x.view.format.decode())} with {x.view.ndim}")
    x.data = x.view.buf
    x.rows, x.columns = x.view.shape[0], x.view.shape[1] if ndim == 2 else 1
    return x


cdef inline size_t float_size(const Py_buffer *view) noexcept:
    """Bytes of a value: 8 or 4; 0 for what holds none, and where one stands across the multiples of its size."""
    cdef size_t size = view.itemsize if view.format[1] == 0 and view.format[0] in b"df" else 0
    return size if size and <uintptr_t>view.buf % size == 0 else 0


cdef str float_name(size_t itemsize):
    return {8: "float64", 4: "float32"}.get(itemsize, "float64 or float32")


cdef inline Py_ssize_t panel_of(size_t itemsize) noexcept nogil:
    """PANEL of an engine whose values have that size."""
    return CACHE_LINE // itemsize
