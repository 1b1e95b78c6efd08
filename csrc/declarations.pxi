# The header of core.pyx, which is compiled once: what it shares with the engines, one for each instruction set
# and precision (engine.pxi).  The code of what is only declared here is in the file of core.pyx that fits its name.
#
# No typed memoryviews here: their code would be compiled into every engine.  Those stay in core.pyx, whose functions
# check them and pass pointers on.
#
# Uses: real.h.

from libc.stdint cimport int64_t


cdef extern from "base/real.h" nogil:
    enum:
        CACHE_LINE "FL_CACHE_LINE"


# Sizes

cdef enum:
    WIDEST_PANEL = 16       # PANEL of float32, a multiple of the other

cdef inline Py_ssize_t tiles(Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    """How many tiles of that size cover n."""
    return (n + size - 1) // size


cdef inline Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    """The next multiple of size."""
    return tiles(n, size) * size


cdef inline Py_ssize_t share(Py_ssize_t n, Py_ssize_t part, Py_ssize_t parts, Py_ssize_t size) noexcept nogil:
    """Where a part begins when n items are dealt out in whole tiles of that size; n for part == parts."""
    return min(tiles(n, size) * part // parts * size, n)


cdef inline Py_ssize_t padded_to(Py_ssize_t D, Py_ssize_t panel) noexcept nogil:
    """The stride of rows of D values: an odd number of whole panels, each of which is as wide as a cache line.

    With an even number, a column of a tall matrix would fall into few sets of the L1 cache and evict itself.
    """
    return (tiles(D, panel) | 1) * panel


# Memory and threads

# What a size that is too large becomes: a multiple of the cache line, so that rounding it up changes nothing.
cdef extern from *:
    """
    #define FL_TOO_LARGE (PY_SSIZE_T_MAX & ~(Py_ssize_t)(FL_CACHE_LINE - 1))
    """
    const Py_ssize_t TOO_LARGE "FL_TOO_LARGE"


cdef inline Py_ssize_t times(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    """a * b for a, b >= 0, or TOO_LARGE where the product is larger."""
    return TOO_LARGE if b > 0 and a > TOO_LARGE // b else a * b


cdef struct Arena:
    char *base              # NULL while counting
    size_t used             # bytes taken so far
    size_t size             # bytes that were counted, and may be carved
    bint failed             # whether more was counted than can be addressed, or more carved than was counted


cdef inline void *take(Arena *arena, Py_ssize_t n, size_t item) noexcept nogil:
    """Room for n items of that many bytes, beginning at a cache line, so that no vec crosses one; NULL while
    counting."""
    cdef size_t most = arena.size if arena.base != NULL else <size_t>TOO_LARGE, begin = arena.used
    cdef size_t last = CACHE_LINE - 1
    cdef size_t bytes_ = most + 1 if n < 0 or <size_t>n > most // item else (<size_t>n * item + last) & ~last
    if bytes_ > most - begin:
        arena.failed = True
        return NULL
    arena.used += bytes_
    return arena.base + begin if arena.base != NULL else NULL


cdef class Buffer:
    cdef void *memory
    cdef size_t size            # bytes, from the first whole cache line on
    cdef int turn               # 0 before lays_out, 1 while counting, 2 while carving
    cdef Arena arena
    cdef bint lays_out(self) except -1
    cdef void *array(self, Py_ssize_t n, size_t item) except NULL


cdef class Floats:
    cdef Py_buffer view
    cdef bint held
    cdef void *data
    cdef size_t itemsize
    cdef Py_ssize_t rows        # values of a vector
    cdef Py_ssize_t columns


cdef int refuse(str what, str why) except -1


cdef inline int check_free(str what, bint busy) except -1:
    """Raise OrderError where another Python thread is in compiled code that works on the same memory without the GIL.

    A function that releases the GIL checks `busy` and then sets it, both while it still holds the GIL.
    """
    return refuse(what, "another Python thread is in a call on the same object") if busy else 0


cdef int threads_for(Py_ssize_t work) noexcept nogil


# A thread that is awake from the loop before is worth using for so many times less work than one that must be woken.
cdef enum:
    AWAKE = 4


cdef inline int threads_in_pass(Py_ssize_t work) noexcept nogil:
    """threads_for one of several loops in a row."""
    return threads_for(AWAKE * work)


cdef double weighted_sum(const double *x, const double *weights, Py_ssize_t n) noexcept nogil


# What a pass reads

cdef struct Tokens:
    Py_ssize_t N            # positions
    Py_ssize_t B            # documents
    int64_t *inputs         # (N,) the id that the model reads
    int64_t *targets        # (N,) the id to predict
    int64_t *positions      # (N,) place in the document
    double *weights         # (N,) of the losses: 1 / (documents * the document's length)
    int64_t *first          # (B + 1,) where each document begins
    Py_ssize_t n_ids        # all ids are below this
    Py_ssize_t block_size   # all positions are below this


cdef struct Rows:
    Py_ssize_t N            # rows
    Py_ssize_t ld           # stride of x
    size_t itemsize         # of x and targets
    void *x                 # (N, ld) the rows of X
    void *targets           # (N, n_out) where y holds values
    int64_t *classes        # (N,) where y holds class ids
    double *weights         # (N,) that add up to 1 over the rows of a step
    double total            # what the rows of a step weigh together: their number, unless they have their own weights
    Py_ssize_t n_in         # columns of X
    Py_ssize_t n_out        # columns of y, or 0
    int64_t largest_class   # of the class ids, or -1


cdef class Data:
    cdef readonly Py_ssize_t n_examples
    cdef readonly Py_ssize_t longest        # the most predictions that an example gives
    cdef readonly bint windows              # whether the examples overlap, and are to be drawn at random


cdef class Batch:
    cdef readonly Py_ssize_t n_examples         # documents, or rows of X
    cdef readonly Py_ssize_t n_predictions      # tokens, or rows: each has one loss
    cdef Data data
    cdef Buffer work
    cdef tuple taken                            # what take was given, (indices as bytes, total), for a copy
    cdef int64_t fills                          # calls of take: backward must read what its forward pass read
    cdef int readers                            # passes at work on it
    cdef Py_ssize_t reserve(self, Py_ssize_t examples) except -1
    cdef void fill(self, const int64_t *indices, Py_ssize_t count, double total) noexcept nogil


cdef class TokenBatch(Batch):
    cdef Tokens tokens


cdef class ArrayBatch(Batch):
    cdef Rows rows


# What an engine computes

# Values summed at a time for a norm.  The partial sums are added in order, so it does not depend on the threads.
cdef enum:
    NORM_BLOCK = 4096


cdef inline Py_ssize_t norm_blocks(Py_ssize_t n) noexcept nogil:
    """How many partial sums a norm of n values has."""
    return tiles(n, NORM_BLOCK)


# A tensor in a step of a torch optimiser.
cdef struct Part:
    void *grad                  # (n,) values, as are the others
    void *param
    void *state[2]              # Adam's moments, SGD's velocity; NULL where there are fewer
    void *step                  # the state's count of steps, a float64 or float32, or NULL
    Py_ssize_t n
    Py_ssize_t first            # of the panels of all tensors, one after another
    bint single                 # float32
    bint step_single
    int64_t t                   # the step to take, from 1 on; of SGD whether it is a later one (2) than the first (1)
    double lr
    double hyper[3]             # beta1, beta2, eps; momentum, dampening, nesterov
    double decay                # weight decay
    bint decoupled              # as AdamW has it
    double scale                # of the gradient: -1 to maximise


cdef class Kernels:
    cdef size_t itemsize        # of a value: the engine's precision
    cdef double squarable       # the square of a larger value is infinite
    cdef double moderate        # a tenth of that
    cdef double large           # a hundredth of what can be added to any finite value
    cdef Floats vector(self, array, bint writable)
    cdef Floats matrix(self, array, bint writable)
    cdef void scale(self, void *x, Py_ssize_t n, double factor) noexcept nogil
    cdef double norm2(self, const void *x, Py_ssize_t n, double *partial) noexcept nogil
    cdef double largest(self, const void *x, const void *before, Py_ssize_t n) noexcept nogil
    cdef Py_ssize_t clip_values(self, void *x, Py_ssize_t n, double limit) noexcept nogil
    cdef void embed(self, const int64_t *inputs, const int64_t *positions, Py_ssize_t N, Py_ssize_t D,
                    const void *wte, const void *wpe, void *x) noexcept nogil
    cdef void scatter(self, const int64_t *ids, Py_ssize_t N, Py_ssize_t D, const void *dx,
                      void *dtable) noexcept nogil
    cdef int logits(self, Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const void *x, const void *lm_head,
                    void *logits) except -1
    cdef int logits_grad(self, Py_ssize_t N, Py_ssize_t D, Py_ssize_t V, const void *x, const void *lm_head,
                         const void *dlogits, void *dx, void *dlm_head) except -1
    cdef int cross_entropy(self, Py_ssize_t N, Py_ssize_t V, const void *logits, const int64_t *targets,
                           double *losses, void *dlogits) except -1
    cdef void adam(self, void *grad, void *param, void *m, void *v, Py_ssize_t n, double lr, double beta1,
                   double beta2, double eps, int64_t t, double weight_decay, bint decoupled, double grad_scale,
                   bint zero_grad) noexcept nogil
    cdef bint finite(self, const void *x, Py_ssize_t n) noexcept nogil
    cdef void update_part(self, const Part *part, Py_ssize_t first, Py_ssize_t last, bint adam) noexcept nogil


cdef class Model:
    cdef Kernels kernels
    cdef object arrays                      # params and grads, kept alive for the pointers
    cdef const void *params
    cdef void *grads
    cdef readonly Py_ssize_t size
    cdef Buffer work
    cdef Py_ssize_t room                    # predictions that the workspace is laid out for, or -1
    cdef Batch batch
    cdef double *losses                     # (predictions,) of the last forward, nats
    cdef bint busy                          # whether a pass is at work; see check_free
    cdef bint add                           # whether backward adds to grads, or overwrites what is there
    cdef bint failed                        # whether a pass has raised `failure`, which is to be raised again
    cdef object failure
    cdef void fail(self, failure) noexcept
    cdef int raise_failure(self) except -1
    cdef double total_loss(self) noexcept
    cdef dict places(self, dict tensors)
    cdef int bind(self, Batch batch, Py_ssize_t predictions) except -1
    cdef int make_room(self, Py_ssize_t predictions) except -1
    cdef void lay_out(self, Arena *arena, Py_ssize_t predictions) noexcept nogil
    cdef double forward(self) noexcept nogil
    cdef void backward(self) noexcept nogil


cdef class LanguageModel(Model):
    cdef readonly Py_ssize_t V, D, T
    cdef Py_ssize_t cached                  # positions whose keys and values generation has kept
    cdef void write_logits(self, void *logits) noexcept nogil
    cdef int prepare_generation(self) except -1
    cdef void generate(self, const int64_t *tokens, Py_ssize_t B, Py_ssize_t position, void *logits) noexcept nogil


cdef class ArrayModel(Model):
    cdef Py_ssize_t n_out
    cdef int bind_inputs(self, Batch batch, Py_ssize_t predictions) except -1
    cdef void write_outputs(self, void *out) noexcept nogil


cdef struct Segment:
    void *grad                  # (n,), as are the others
    void *param
    void *state[2]              # Adam's moments, SGD's velocity; NULL where there are fewer
    Py_ssize_t n
    double decay                # weight decay


cdef class Optimizer:
    cdef Kernels kernels
    cdef Segment *segments
    cdef Py_buffer *views       # of the gradients of a step
    cdef list shapes            # of the parameters
    cdef Py_ssize_t count
    cdef Buffer memory
    cdef Buffer partial_memory
    cdef double *partial        # sums for the norm of the longest array
    cdef object kept            # the arrays, kept alive for the pointers
    cdef int64_t taken          # steps
    cdef double decay           # the largest weight decay
    cdef double moment          # a bound on the first moments' size; infinite where none is known
    cdef double param           # the same of the parameters, within a compiled call: between calls users write to them
    cdef bint busy              # whether a step is at work; see check_free
    cdef void *pointer(self, array, Py_ssize_t n, list arrays) except? NULL
    cdef bint view(self, Py_ssize_t i, grad) except -1
    cdef bint update(self, double lr, double grad_scale, double largest) noexcept nogil
    cdef bint update_unseen(self, double lr) noexcept nogil
    cdef bint prepare(self, double lr, double grad_scale, double largest) noexcept nogil
    cdef void apply(self, Segment *s, double lr) noexcept nogil
    cdef bint look(self, double lr) noexcept nogil
    cdef double largest_param(self) noexcept nogil
