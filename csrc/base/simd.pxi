# What is particular to an instruction set and a precision: the names of simd.h and real.h, for Cython, and the engine's
# kernels.
#
# Uses: declarations, real.h, simd.h.

cdef extern from "base/real.h" nogil:
    ctypedef double real "fl_real"
    enum:
        PANEL "FL_PANEL"
    const double SQUARABLE "FL_SQUARABLE"
    const double MODERATE "FL_MODERATE"
    const double LARGE "FL_LARGE"
    const double TINY "FL_TINY"
    const double TINY_ROOT "FL_TINY_ROOT"
    const double TINY_BETA "FL_TINY_BETA"


cdef extern from "base/simd.h" nogil:
    ctypedef struct vec:
        pass
    enum:
        FL_ROWS
        FL_STRIPS
    vec v_load(const real *p)
    void v_store(real *p, vec a)
    vec v_set(real x)
    vec v_add(vec a, vec b)
    vec v_sub(vec a, vec b)
    vec v_mul(vec a, vec b)
    vec v_div(vec a, vec b)
    vec v_fma(vec a, vec b, vec c)
    vec v_max(vec a, vec b)
    vec v_sqrt(vec x)
    vec v_flush(vec x, real tiny)
    vec v_exp(vec x)
    vec v_tanh(vec x)
    vec v_where_equal(vec a, vec b, vec x, vec y)
    vec v_where_less(vec a, vec b, vec x, vec y)
    void fl_transpose(const real *input, Py_ssize_t ldi, real *output, Py_ssize_t ldo)
    void fl_tiles(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *A, Py_ssize_t a_row, Py_ssize_t a_col,
                  Py_ssize_t a_block, const real *B, Py_ssize_t ldb, Py_ssize_t b_strip, real *C, Py_ssize_t ldc,
                  Py_ssize_t c_strip, int accumulate)
    double fl_sum_squares(const real *x, Py_ssize_t n, double scale)
    real fl_at_most(double x)


cdef inline Py_ssize_t padded(Py_ssize_t D) noexcept nogil:
    return padded_to(D, PANEL)


cdef inline real *take_values(Arena *arena, Py_ssize_t rows, Py_ssize_t width) noexcept nogil:
    """Room for (rows, width) values of a computation."""
    return <real *>take(arena, times(rows, width), sizeof(real))


# The one object of this engine, made in engine_kernels.pxi, through which core.pyx calls the kernels.
cdef Kernels kernels
