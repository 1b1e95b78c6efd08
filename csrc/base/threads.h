/* The number of threads, and protection from two habits of libgomp: it ends the process where a thread cannot be made,
   and it hangs in a forked child that uses threads after its parent did.

   Uses nothing. */

#ifndef FL_THREADS_H
#define FL_THREADS_H

#include <limits.h>
#include <stdlib.h>

#ifdef _OPENMP
#define FL_OPENMP 1
#include <omp.h>
#else
#define FL_OPENMP 0
#endif

#ifdef _MSC_VER
#define FL_THREAD_LOCAL __declspec(thread)
#define FL_LOAD(x) (x)
#define FL_STORE(x, value) ((x) = (value))
#else
#define FL_THREAD_LOCAL __thread
#define FL_LOAD(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define FL_STORE(x, value) __atomic_store_n(&(x), value, __ATOMIC_RELAXED)
#endif

/* The most threads: for the process, and for the calling Python thread.  Both are set from fastloop/threads.py, while
   other threads may be training. */
static int fl_max_threads = 1;
static FL_THREAD_LOCAL int fl_own_threads = INT_MAX;

/* For the calling Python thread: how many threads are known to run at once, and the most that can be made. */
static FL_THREAD_LOCAL int fl_ready = 1;
static FL_THREAD_LOCAL int fl_available = INT_MAX;

#if FL_OPENMP && !defined(_WIN32)
#include <pthread.h>
#include <time.h>

static void *fl_wait(void *gate) {
    pthread_mutex_lock((pthread_mutex_t *)gate);
    pthread_mutex_unlock((pthread_mutex_t *)gate);
    return NULL;
}

/* The stack size of libgomp's threads that the environment asks for, or 0: a number and B, K (the default), M or G. */
static size_t fl_stack_size(void) {
    const char *text = getenv("OMP_STACKSIZE");
    char *unit;
    size_t size;
    if (text == NULL)
        text = getenv("GOMP_STACKSIZE");
    if (text == NULL)
        return 0;
    size = strtoull(text, &unit, 10);
    while (*unit == ' ')
        unit++;
    switch (*unit | 32) {
    case 'b': return size;
    case 'm': return size << 20;
    case 'g': return size << 30;
    default: return size << 10;
    }
}

/* How many of n threads, the calling one among them, can exist at once: they are made for a moment. */
static int fl_probe(int n) {
    const struct timespec moment = {0, 1000000};
    const size_t stack = fl_stack_size();
    pthread_t *threads = (pthread_t *)malloc(n * sizeof(pthread_t));
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t attributes;
    int made = 0;
    if (threads == NULL)
        return 1;
    if (pthread_attr_init(&attributes) == 0) {
        if (stack)
            pthread_attr_setstacksize(&attributes, stack);      /* libgomp ignores a size that is refused, too */
        pthread_mutex_lock(&gate);
        while (made < n - 1 && pthread_create(&threads[made], &attributes, fl_wait, &gate) == 0)
            made++;
        pthread_mutex_unlock(&gate);
        for (int i = 0; i < made; i++)
            pthread_join(threads[i], NULL);
        pthread_attr_destroy(&attributes);
    }
    free(threads);
    nanosleep(&moment, NULL);       /* the kernel counts a thread for a moment after it has been joined */
    return made + 1;
}
#else
static int fl_probe(int n) { return n; }
#endif

/* How many of n threads can be made.  They then exist and sleep; done once for each Python thread and number. */
static int fl_prepare(int n) {
    static int woken;
    if (n > fl_available)
        n = fl_available;
    if (n <= fl_ready)
        return n;
    fl_ready = fl_probe(n);
    if (fl_ready < n)
        fl_available = n = fl_ready;
    if (n > 1) {
#if FL_OPENMP
#pragma omp parallel num_threads(n)
#endif
        FL_STORE(woken, 1);
    }
    return n;
}

/* Give up the calling Python thread's pool, so that a child that is forked now can make its own; 0 where that cannot
   be done.  The next parallel loop makes the pool again. */
static int fl_release(void) {
    fl_ready = 1;
#if !FL_OPENMP || defined(_WIN32)
    return 1;
#elif _OPENMP >= 201811 || (defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9)
    return omp_pause_resource_all(omp_pause_hard) == 0;
#else
    return 0;
#endif
}

#endif
