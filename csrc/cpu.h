/* What the running CPU can do, and which compiler built this: C, since Cython cannot ask the compiler.

   Uses nothing. */
#ifndef FASTLOOP_CPU_H
#define FASTLOOP_CPU_H

#if defined(__GNUC__) && defined(__x86_64__)
static int fl_has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static int fl_has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl");
}
#else
static int fl_has_avx2(void) { return 0; }
static int fl_has_avx512(void) { return 0; }
#endif

#if defined(__clang__)
#define FL_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define FL_COMPILER "gcc " __VERSION__
#elif defined(_MSC_VER)
#define FL_COMPILER "msvc"
#else
#define FL_COMPILER "unknown"
#endif

#endif
