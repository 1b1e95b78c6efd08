# Who may be at work, and the number of threads.
#
# Uses: declarations, threads.h.

cdef int refuse(str what, str why) except -1:
    """Raise OrderError.  Not inline, which keeps check_free small."""
    from fastloop.errors import OrderError

    raise OrderError(f"{what} was called while {why}, expected after its end")


cdef object not_copied(made):
    """Raise TypeError: a copy would point into the same buffers."""
    name = type(made).__name__
    raise TypeError(f"a {name} is compiled and cannot be copied or pickled; copy the Trainer or the model")


# Floating-point operations that are worth waking a thread for.
cdef Py_ssize_t work_per_thread = 2000000


cdef extern from "base/threads.h":
    const bint FL_OPENMP
    int fl_max_threads, fl_own_threads, fl_ready
    int FL_LOAD(int x) nogil
    void FL_STORE(int x, int value) nogil
    int fl_prepare(int n) nogil
    bint fl_release() nogil

openmp = FL_OPENMP


def set_max_threads(int n):
    FL_STORE(fl_max_threads, n)


def set_own_threads(int n):
    """The same for the calling Python thread alone; the smaller of the two holds."""
    global fl_own_threads
    fl_own_threads = n


def release_threads():
    """Give up the calling Python thread's pool before a fork; False where the child could not make its own."""
    return fl_release()


def set_work_per_thread(Py_ssize_t n):
    """Set how many operations are worth a thread, and return what it was: with 1, tests use threads for small work."""
    global work_per_thread
    if n < 1:
        raise ValueError(f"n = {n} must be at least 1")
    n, work_per_thread = work_per_thread, n
    return n


cdef int threads_for(Py_ssize_t work) noexcept nogil:
    """The number of threads for `work` floating-point operations: chosen here, for every loop."""
    cdef Py_ssize_t n = work // work_per_thread
    if n <= 1:
        return 1
    n = min(n, FL_LOAD(fl_max_threads), fl_own_threads)
    return <int>n if n <= fl_ready else fl_prepare(<int>n)
