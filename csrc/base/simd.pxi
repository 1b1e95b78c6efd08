# The names of simd.h, for Cython.

cdef extern from "base/simd.h" nogil:
    ctypedef struct v8:
        pass
    enum:
        FL_LANES
        FL_ROWS
    v8 v8_load(const double *p)
    void v8_store(double *p, v8 a)
    v8 v8_set(double x)
    v8 v8_add(v8 a, v8 b)
    v8 v8_sub(v8 a, v8 b)
    v8 v8_mul(v8 a, v8 b)
    v8 v8_div(v8 a, v8 b)
    v8 v8_fma(v8 a, v8 b, v8 c)
    v8 v8_max(v8 a, v8 b)
    v8 v8_sqrt(v8 x)
    v8 v8_flush(v8 x, double tiny)
    v8 v8_exp(v8 x)
    v8 v8_tanh(v8 x)
    v8 v8_where_equal(v8 a, v8 b, v8 x, v8 y)
    v8 v8_where_less(v8 a, v8 b, v8 x, v8 y)
    void fl_transpose(const double *input, Py_ssize_t ldi, double *output, Py_ssize_t ldo)
    void fl_tiles(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const double *A, Py_ssize_t a_row, Py_ssize_t a_col,
                  Py_ssize_t a_block, const double *B, Py_ssize_t ldb, Py_ssize_t b_strip, double *C, Py_ssize_t ldc,
                  int accumulate)
