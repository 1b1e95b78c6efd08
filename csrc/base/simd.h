/* The vector type of the kernels, FL_PANEL values wide, and the register tile that every matrix product is made of.

   Only what needs a vector register, which Cython cannot name.  One source serves every instruction set: a vec is one
   AVX-512 register, two AVX2 ones, four SSE2 or NEON ones, or FL_PANEL numbers where the compiler has no vector
   extension.  No function here allocates, branches on data or calls Python.

   Uses: real.h. */
#ifndef FASTLOOP_SIMD_H
#define FASTLOOP_SIMD_H

#ifdef __FAST_MATH__
#error "fastloop must not be built with -ffast-math: its guards test for NaN"
#endif

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "real.h"

#if defined(__GNUC__)
#define FL_INLINE static inline __attribute__((always_inline))
#else
#define FL_INLINE static __inline
#endif

/* Bytes of a register, 0 for none; and the intrinsics of this precision. */
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define FL_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define FL_BYTES 32
#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#define FL_BYTES 16
#elif defined(__GNUC__)
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#define FL_BYTES 16
#else
#define FL_BYTES 0
#endif

#ifdef FL_FLOAT32
typedef int32_t fl_int;
#define FL_INT_MAX INT32_MAX
#define FL_MM(op) op##_ps
#else
typedef int64_t fl_int;
#define FL_INT_MAX INT64_MAX
#define FL_MM(op) op##_pd
#endif

#if FL_BYTES
#define FL_REGS (64 / FL_BYTES)         /* registers in a vec */
#define FL_LANES (FL_PANEL / FL_REGS)
typedef fl_real fl_vec __attribute__((vector_size(FL_BYTES)));
typedef fl_int fl_ivec __attribute__((vector_size(FL_BYTES)));
typedef fl_real fl_vec_u __attribute__((vector_size(FL_BYTES), aligned(sizeof(fl_real)), may_alias));
#else
#define FL_REGS FL_PANEL
#define FL_LANES 1
typedef fl_real fl_vec;
typedef fl_int fl_ivec;
#endif

/* Rows of a tile, and strips of FL_PANEL columns: enough independent sums to hide the latency of FMA (4 cycles on two
   ports), few enough to stay in the registers of the instruction set.  A value of A serves all strips, a vec of B all
   rows, so 8 by 2 take 10 loads for 16 FMAs where 8 by 1 take 9 for 8, and two ports load. */
#define FL_STRIPS 1
#if FL_BYTES == 64
#define FL_ROWS 8
#undef FL_STRIPS
#define FL_STRIPS 2
#elif FL_BYTES == 32
#define FL_ROWS 6
#elif FL_BYTES == 16 && defined(__aarch64__)
#define FL_ROWS 4
#elif FL_BYTES == 16
#define FL_ROWS 3
#else
#define FL_ROWS 1
#endif

typedef struct { fl_vec r[FL_REGS]; } vec;

#define FL_EACH for (int i_ = 0; i_ < FL_REGS; i_++)

FL_INLINE vec v_load(const fl_real *p) {
    vec a;
#if FL_BYTES
    FL_EACH a.r[i_] = *(const fl_vec_u *)(p + i_ * FL_LANES);
#else
    FL_EACH a.r[i_] = p[i_];
#endif
    return a;
}

FL_INLINE void v_store(fl_real *p, vec a) {
#if FL_BYTES
    FL_EACH *(fl_vec_u *)(p + i_ * FL_LANES) = a.r[i_];
#else
    FL_EACH p[i_] = a.r[i_];
#endif
}

FL_INLINE vec v_set(fl_real x) {
    vec a;
#if FL_BYTES
    FL_EACH a.r[i_] = x - (fl_vec){0};
#else
    FL_EACH a.r[i_] = x;
#endif
    return a;
}

FL_INLINE vec v_add(vec a, vec b) { FL_EACH a.r[i_] += b.r[i_]; return a; }
FL_INLINE vec v_sub(vec a, vec b) { FL_EACH a.r[i_] -= b.r[i_]; return a; }
FL_INLINE vec v_mul(vec a, vec b) { FL_EACH a.r[i_] *= b.r[i_]; return a; }
FL_INLINE vec v_div(vec a, vec b) { FL_EACH a.r[i_] /= b.r[i_]; return a; }

/* a * b + c: one rounding where the instruction set has FMA, two elsewhere. */
FL_INLINE vec v_fma(vec a, vec b, vec c) {
#if FL_BYTES == 64
    FL_EACH c.r[i_] = FL_MM(_mm512_fmadd)(a.r[i_], b.r[i_], c.r[i_]);
#elif FL_BYTES == 32
    FL_EACH c.r[i_] = FL_MM(_mm256_fmadd)(a.r[i_], b.r[i_], c.r[i_]);
#elif FL_BYTES == 16 && defined(__aarch64__) && defined(FL_FLOAT32)
    FL_EACH c.r[i_] = (fl_vec)vfmaq_f32((float32x4_t)c.r[i_], (float32x4_t)a.r[i_], (float32x4_t)b.r[i_]);
#elif FL_BYTES == 16 && defined(__aarch64__)
    FL_EACH c.r[i_] = (fl_vec)vfmaq_f64((float64x2_t)c.r[i_], (float64x2_t)a.r[i_], (float64x2_t)b.r[i_]);
#else
    FL_EACH c.r[i_] += a.r[i_] * b.r[i_];
#endif
    return c;
}

/* sqrt(x) for x >= 0, not subnormal, within 1 ULP; NaN stays NaN.  AVX-512's instruction would occupy the divider,
   which Adam needs as well, so there the 14-bit estimate y of 1 / sqrt(x) is refined by multiplications.  With
   d = 1 - x y^2 the root is x y (1 - d)^(-1/2) = x y (1 + d / 2 + 3 d^2 / 8 + 5 d^3 / 16 + ...), and d^4 is below the
   last bit.  0 and infinity, whose estimates are infinity and 0, are their own roots.  The other instruction sets have
   no such estimate for float64. */
FL_INLINE vec v_sqrt(vec x) {
#if FL_BYTES == 64
    const vec one = v_set(1.0), c1 = v_set(0.5), c2 = v_set(0.375);
    FL_EACH {
        /* 0, -0, infinity */
#ifdef FL_FLOAT32
        const __mmask16 itself = _mm512_fpclass_ps_mask(x.r[i_], 0x0e);
#else
        const __mmask8 itself = _mm512_fpclass_pd_mask(x.r[i_], 0x0e);
#endif
        const fl_vec y = FL_MM(_mm512_rsqrt14)(x.r[i_]), s = x.r[i_] * y;
        const fl_vec d = FL_MM(_mm512_fnmadd)(s, y, one.r[i_]);
#ifdef FL_FLOAT32       /* d^3 is below the last bit */
        const fl_vec rest = c2.r[i_];
#else
        const fl_vec rest = FL_MM(_mm512_fmadd)(v_set(0.3125).r[i_], d, c2.r[i_]);
#endif
        const fl_vec series = FL_MM(_mm512_fmadd)(rest, d, c1.r[i_]);
        x.r[i_] = FL_MM(_mm512_mask_mov)(FL_MM(_mm512_fmadd)(s * d, series, s), itself, x.r[i_]);
    }
#elif FL_BYTES == 32
    FL_EACH x.r[i_] = FL_MM(_mm256_sqrt)(x.r[i_]);
#elif FL_BYTES == 16 && defined(__SSE2__)
    FL_EACH x.r[i_] = FL_MM(_mm_sqrt)(x.r[i_]);
#elif FL_BYTES == 16 && defined(__aarch64__) && defined(FL_FLOAT32)
    FL_EACH x.r[i_] = (fl_vec)vsqrtq_f32((float32x4_t)x.r[i_]);
#elif FL_BYTES == 16 && defined(__aarch64__)
    FL_EACH x.r[i_] = (fl_vec)vsqrtq_f64((float64x2_t)x.r[i_]);
#elif FL_BYTES == 16
    FL_EACH for (int j = 0; j < FL_LANES; j++) x.r[i_][j] = sqrt(x.r[i_][j]);
#else
    FL_EACH x.r[i_] = sqrt(x.r[i_]);
#endif
    return x;
}

/* x in the lanes where cond holds, else y; the lanes of a comparison are all ones or all zeros. */
#if FL_BYTES
#define FL_SELECT(cond, x, y) ((fl_vec)(((fl_ivec)(x) & (cond)) | ((fl_ivec)(y) & ~(cond))))
#else
#define FL_SELECT(cond, x, y) ((cond) ? (x) : (y))
#endif

/* Lane by lane: a where a > b, else b (so b where either is NaN). */
FL_INLINE vec v_max(vec a, vec b) {
#if FL_BYTES == 64
    FL_EACH a.r[i_] = FL_MM(_mm512_max)(a.r[i_], b.r[i_]);
#elif FL_BYTES == 32
    FL_EACH a.r[i_] = FL_MM(_mm256_max)(a.r[i_], b.r[i_]);
#else
    FL_EACH a.r[i_] = FL_SELECT(a.r[i_] > b.r[i_], a.r[i_], b.r[i_]);
#endif
    return a;
}

/* Lane by lane: 0 where |x| < tiny, else x (NaN too). */
FL_INLINE vec v_flush(vec x, fl_real tiny) {
#if FL_BYTES
    const vec limit = v_set(tiny);
    FL_EACH {
        const fl_vec size = (fl_vec)((fl_ivec)x.r[i_] & FL_INT_MAX);
        x.r[i_] = (fl_vec)((fl_ivec)x.r[i_] & ~(fl_ivec)(size < limit.r[i_]));
    }
#else
    FL_EACH x.r[i_] = fabs(x.r[i_]) < tiny ? 0.0 : x.r[i_];
#endif
    return x;
}

/* Lane by lane: x where a == b, else y. */
FL_INLINE vec v_where_equal(vec a, vec b, vec x, vec y) {
    FL_EACH a.r[i_] = FL_SELECT(a.r[i_] == b.r[i_], x.r[i_], y.r[i_]);
    return a;
}

/* Lane by lane: x where a < b, else y. */
FL_INLINE vec v_where_less(vec a, vec b, vec x, vec y) {
    FL_EACH a.r[i_] = FL_SELECT(a.r[i_] < b.r[i_], x.r[i_], y.r[i_]);
    return a;
}

/* exp(x), x <= 0, in two parts: returns exp(r) - 1 and sets scale = 2^n, where x = n ln 2 + r, |r| <= ln(2) / 2.
   exp(r) = 1 + r + r^2 q(r), with q by Chebyshev interpolation, of degree 9 (relative error 2e-17) or in float32 4
   (1e-8); 2^n is written into the exponent bits.  Without a table or a branch all lanes go together; a loop that calls
   libm's exp stays scalar. */
#ifdef FL_FLOAT32
#define FL_EXP_TERMS 5
#define FL_EXP_Q {0x1.6d113cp-10f, 0x1.120ba2p-7f, 0x1.55551ap-5f, 0x1.5554dcp-3f, 0x1.0p-1f}
#define FL_ROUND 0x1.8p23f              /* adding it rounds to an integer in the low bits */
#define FL_LN2_HIGH 0x1.62e4p-1f
#define FL_LN2_LOW 0x1.7f7d1cp-20f
#define FL_BIAS 127
#define FL_MANTISSA 23
#define FL_EXP_LEAST -87.0f
#else
#define FL_EXP_TERMS 10
#define FL_EXP_Q { \
        0x1.af38a9b0ec855p-26, 0x1.289185613a3d6p-22, 0x1.71de0dae63bb3p-19, 0x1.a019b90d2ae7ap-16, \
        0x1.a01a01a7c41d5p-13, 0x1.6c16c1788bd90p-10, 0x1.11111111109b3p-7, 0x1.5555555553d63p-5, \
        0x1.5555555555556p-3, 0x1.0000000000001p-1}
#define FL_ROUND 0x1.8p52
#define FL_LN2_HIGH 0x1.62e42p-1
#define FL_LN2_LOW 0x1.fdf473de6af28p-22
#define FL_BIAS 1023
#define FL_MANTISSA 52
#define FL_EXP_LEAST -708.0
#endif
FL_INLINE vec fl_exp_parts(vec x, vec *scale) {
    static const fl_real q[FL_EXP_TERMS] = FL_EXP_Q;
    const vec shift = v_set(FL_ROUND);
    vec t = v_fma(x, v_set(0x1.71547652b82fep+0), shift);
    vec n = v_sub(t, shift);
    vec r = v_fma(n, v_set(-FL_LN2_HIGH), x);
    vec p;
    r = v_fma(n, v_set(-FL_LN2_LOW), r);
    p = v_set(q[0]);
    for (int i = 1; i < FL_EXP_TERMS; i++)
        p = v_fma(p, r, v_set(q[i]));
    FL_EACH {
#if FL_BYTES
        scale->r[i_] = (fl_vec)(((fl_ivec)t.r[i_] + FL_BIAS) << FL_MANTISSA);
#else
        fl_int bits;
        memcpy(&bits, &t.r[i_], sizeof(bits));
        bits = (fl_int)((uint64_t)(bits + FL_BIAS) << FL_MANTISSA);
        memcpy(&scale->r[i_], &bits, sizeof(bits));
#endif
    }
    return v_fma(v_mul(r, r), p, r);
}

/* exp(x), x <= 0, within 1.1 ULP; 0 below FL_EXP_LEAST, where the result would be near the subnormal numbers; NaN
   stays NaN. */
FL_INLINE vec v_exp(vec x) {
    vec scale, p = fl_exp_parts(x, &scale);
    return v_where_less(x, v_set(FL_EXP_LEAST), v_set(0.0), v_fma(p, scale, scale));
}

/* tanh(x), within 3 ULP; NaN stays NaN.  With u = exp(-2 |x|) - 1, tanh(-|x|) = u / (2 + u); u comes from the two
   parts of exp, 2^n (exp(r) - 1) + (2^n - 1), so that nothing cancels near 0.  Beyond |x| = 20 tanh is 1 to the
   last bit. */
FL_INLINE vec v_tanh(vec x) {
    const vec zero = v_set(0.0), minus_two = v_set(-2.0);
    vec y = v_mul(v_where_less(x, zero, v_sub(zero, x), x), minus_two);
    vec scale, p = fl_exp_parts(v_max(v_set(-40.0), y), &scale);
    vec u = v_fma(p, scale, v_sub(scale, v_set(1.0)));
    vec t = v_div(u, v_sub(u, minus_two));
    return v_where_less(x, zero, t, v_sub(zero, t));
}

/* out (FL_PANEL, FL_PANEL) = in transposed; rows lie ldi and ldo values apart. */
FL_INLINE void fl_transpose(const fl_real *in, ptrdiff_t ldi, fl_real *out, ptrdiff_t ldo) {
#if defined(__AVX2__) && defined(__GNUC__) && defined(FL_FLOAT32)
    for (int i = 0; i < FL_PANEL; i += 8)
        for (int j = 0; j < FL_PANEL; j += 8) {        /* four blocks of 8 x 8, each in 24 shuffles */
            __m256 a[8], b[8];
            for (int k = 0; k < 8; k++)
                a[k] = _mm256_loadu_ps(in + (i + k) * ldi + j);
            for (int k = 0; k < 8; k += 2) {
                b[k] = _mm256_unpacklo_ps(a[k], a[k + 1]);
                b[k + 1] = _mm256_unpackhi_ps(a[k], a[k + 1]);
            }
            for (int k = 0; k < 8; k += 4) {
                a[k] = _mm256_shuffle_ps(b[k], b[k + 2], 0x44);
                a[k + 1] = _mm256_shuffle_ps(b[k], b[k + 2], 0xee);
                a[k + 2] = _mm256_shuffle_ps(b[k + 1], b[k + 3], 0x44);
                a[k + 3] = _mm256_shuffle_ps(b[k + 1], b[k + 3], 0xee);
            }
            for (int k = 0; k < 4; k++) {
                _mm256_storeu_ps(out + (j + k) * ldo + i, _mm256_permute2f128_ps(a[k], a[k + 4], 0x20));
                _mm256_storeu_ps(out + (j + k + 4) * ldo + i, _mm256_permute2f128_ps(a[k], a[k + 4], 0x31));
            }
        }
#elif defined(__AVX2__) && defined(__GNUC__)
    for (int i = 0; i < FL_PANEL; i += 4)
        for (int j = 0; j < FL_PANEL; j += 4) {        /* in blocks of 4 x 4, eight shuffles each */
            const __m256d a = _mm256_loadu_pd(in + i * ldi + j), b = _mm256_loadu_pd(in + (i + 1) * ldi + j);
            const __m256d c = _mm256_loadu_pd(in + (i + 2) * ldi + j), d = _mm256_loadu_pd(in + (i + 3) * ldi + j);
            const __m256d ab0 = _mm256_unpacklo_pd(a, b), ab1 = _mm256_unpackhi_pd(a, b);
            const __m256d cd0 = _mm256_unpacklo_pd(c, d), cd1 = _mm256_unpackhi_pd(c, d);
            _mm256_storeu_pd(out + j * ldo + i, _mm256_permute2f128_pd(ab0, cd0, 0x20));
            _mm256_storeu_pd(out + (j + 1) * ldo + i, _mm256_permute2f128_pd(ab1, cd1, 0x20));
            _mm256_storeu_pd(out + (j + 2) * ldo + i, _mm256_permute2f128_pd(ab0, cd0, 0x31));
            _mm256_storeu_pd(out + (j + 3) * ldo + i, _mm256_permute2f128_pd(ab1, cd1, 0x31));
        }
#else
    for (int i = 0; i < FL_PANEL; i++)
        for (int j = 0; j < FL_PANEL; j++)
            out[j * ldo + i] = in[i * ldi + j];
#endif
}

/* C[i, 0:FL_PANEL] = (C[i, 0:FL_PANEL] or 0) + sum over k of A[i, k] * B[k, 0:FL_PANEL], i < rows, for one or more strips
   of columns.  A[i, k] is A[i * a_row + (k / FL_PANEL) * a_block + (k % FL_PANEL) * a_col]: with the stride of a block k
   runs over panels.  The sum starts from C and goes through k in order, so it does not depend on how the caller cuts the
   work. */
#ifdef FL_FLOAT32
#define FL_APART FL_PANEL     /* products that are summed apart, then added to the sum: half the error */
#else
#define FL_APART 0
#endif
FL_INLINE void fl_tile(const int rows, const int strips, const int blocks, ptrdiff_t K, const fl_real *A, ptrdiff_t a_row,
                       ptrdiff_t a_col, ptrdiff_t a_block, const fl_real *B, ptrdiff_t ldb, ptrdiff_t b_strip,
                       fl_real *C, ptrdiff_t ldc, ptrdiff_t c_strip, int accumulate) {
    vec acc[FL_ROWS][FL_STRIPS], sum[FL_ROWS][FL_STRIPS], b[FL_STRIPS];
#define FL_SUMS for (int i = 0; i < rows; i++) for (int j = 0; j < strips; j++)
    FL_SUMS acc[i][j] = accumulate ? v_load(C + i * ldc + j * c_strip) : v_set(0.0);
    for (; K > 0; K -= FL_PANEL, A += a_block) {
        /* without blocks: one loop over all of k */
        const ptrdiff_t n = (blocks || FL_APART) && K > FL_PANEL ? FL_PANEL : K;
        const fl_real *a = A;
        ptrdiff_t k = 0;
        if (FL_APART) {
            for (int j = 0; j < strips; j++)
                b[j] = v_load(B + j * b_strip);
            FL_SUMS {
                sum[i][j] = acc[i][j];
                acc[i][j] = v_mul(v_set(a[i * a_row]), b[j]);
            }
            k++, a += a_col, B += ldb;
        }
        for (; k < n; k++, a += a_col, B += ldb) {
            for (int j = 0; j < strips; j++)
                b[j] = v_load(B + j * b_strip);
            FL_SUMS acc[i][j] = v_fma(v_set(a[i * a_row]), b[j], acc[i][j]);
        }
        if (FL_APART)
            FL_SUMS acc[i][j] = v_add(sum[i][j], acc[i][j]);
        if (!blocks && !FL_APART)
            break;
    }
    FL_SUMS v_store(C + i * ldc + j * c_strip, acc[i][j]);
#undef FL_SUMS
}

/* The same for any number of rows M, and for N columns in strips of FL_PANEL: a strip's part of B lies b_strip values
   after the one before, its part of C c_strip values.  The loop over rows is the outer one, so that C is written in the
   order of memory where c_strip is FL_PANEL. */
static void fl_tiles(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const fl_real *A, ptrdiff_t a_row, ptrdiff_t a_col,
                     ptrdiff_t a_block, const fl_real *B, ptrdiff_t ldb, ptrdiff_t b_strip, fl_real *C, ptrdiff_t ldc,
                     ptrdiff_t c_strip, int accumulate) {
    const ptrdiff_t all = (N + FL_PANEL - 1) / FL_PANEL;
#define FL_TILE(rows, strips, blocks) \
    fl_tile(rows, strips, blocks, K, A, a_row, a_col, a_block, B + j * b_strip, ldb, b_strip, C + j * c_strip, ldc, \
            c_strip, accumulate)
#define FL_ROW(rows, blocks) { \
        ptrdiff_t j = 0; \
        for (; j + FL_STRIPS <= all; j += FL_STRIPS) \
            FL_TILE(rows, FL_STRIPS, blocks); \
        if (FL_STRIPS > 1 && j < all) \
            FL_TILE(rows, 1, blocks); \
    }
#define FL_CASE(rows) case rows: FL_ROW(rows, 1); break;
#if FL_ROWS == 6
    /* of 7 or 8 rows the last 1 or 2 would hide little latency: 4 and the rest */
#define FL_FEW(M) ((M) < 6 || (M) == 7 || (M) == 8)
#else
#define FL_FEW(M) ((M) < FL_ROWS)
#endif
    for (; !FL_FEW(M); M -= FL_ROWS, A += FL_ROWS * a_row, C += FL_ROWS * ldc)
        if (a_block == FL_PANEL * a_col)
            FL_ROW(FL_ROWS, 0)
        else
            FL_ROW(FL_ROWS, 1)
#if FL_ROWS == 6
    if (M > 5) {
        FL_ROW(4, 1)
        M -= 4, A += 4 * a_row, C += 4 * ldc;
    }
#endif
    switch (M) {
#if FL_ROWS >= 3
    FL_CASE(1) FL_CASE(2)
#endif
#if FL_ROWS >= 4
    FL_CASE(3)
#endif
#if FL_ROWS >= 6
    FL_CASE(4) FL_CASE(5)
#endif
#if FL_ROWS >= 8
    FL_CASE(6) FL_CASE(7)
#endif
    }
#undef FL_FEW
#undef FL_CASE
#undef FL_ROW
#undef FL_TILE
}

/* sum (scale x)^2 over one block of a long sum, in float64: 32 running sums, so that the latency of the additions is
   hidden. */
static double fl_sum_squares(const fl_real *x, ptrdiff_t n, double scale) {
    double lanes[8] = {0}, total = 0.0;
    ptrdiff_t i = 0;
#ifdef FL_FLOAT32
#if FL_BYTES
    enum { WIDE = FL_BYTES / 8 };       /* float64 numbers in a register */
    typedef double wide __attribute__((vector_size(FL_BYTES)));
    wide sums[32 / WIDE];
    double all[32];
    for (int j = 0; j < 32 / WIDE; j++)
        sums[j] = (wide){0};
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 32 / WIDE; j++) {
            const fl_real *at = x + i + WIDE * j;
#if FL_BYTES == 64
            const wide y = _mm512_cvtps_pd(_mm256_loadu_ps(at)) * scale;
#elif FL_BYTES == 32
            const wide y = _mm256_cvtps_pd(_mm_loadu_ps(at)) * scale;
#else
            const wide y = (wide){at[0], at[1]} * scale;
#endif
            sums[j] += y * y;
        }
    memcpy(all, sums, sizeof(all));
    for (int j = 0; j < 8; j++)
        lanes[j] = (all[j] + all[j + 8]) + (all[j + 16] + all[j + 24]);
#endif
#else
    const vec s = v_set(scale);
    vec sums[4];
    for (int j = 0; j < 4; j++)
        sums[j] = v_set(0.0);
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 4; j++) {
            const vec y = v_mul(v_load(x + i + 8 * j), s);
            sums[j] = v_fma(y, y, sums[j]);
        }
    v_store(lanes, v_add(v_add(sums[0], sums[1]), v_add(sums[2], sums[3])));
#endif
    for (; i < n; i++)
        total += (x[i] * scale) * (x[i] * scale);
    for (int j = 0; j < 8; j++)
        total += lanes[j];
    return total;
}

/* The largest value that is no larger than x, which is not negative. */
static fl_real fl_at_most(double x) {
    const fl_real y = (fl_real)x;
#ifdef FL_FLOAT32
    return y > x ? nextafterf(y, 0.0f) : y;
#else
    return y;
#endif
}

#endif
