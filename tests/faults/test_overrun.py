"""Reads and writes outside an array, where it is a slice of a larger one, so that nothing would crash.

Every array that compiled code gets is guarded: by NaN on both sides, which must survive and reach no result, or by a
page right behind it (or in front) that must not be touched, tried in a fresh process, since touching it ends that.
"""

import ctypes
import itertools
import mmap
import os
import sys

import cases
import numpy as np
import pytest

import fastloop as fl
from fastloop import _core, kernels

PAGE = mmap.PAGESIZE


class Guarded:
    """Makes arrays whose last byte (or first, with `front`) lies at the edge of memory that may not be touched."""

    def __init__(self, front):
        self.front, self.kept = front, []
        self.mprotect = ctypes.CDLL(None, use_errno=True).mprotect

    def __call__(self, like):
        like = np.asarray(like)
        pages = -(-like.nbytes // PAGE)
        memory = mmap.mmap(-1, (pages + 2) * PAGE)
        self.kept.append(memory)
        start = PAGE if self.front else PAGE + pages * PAGE - like.nbytes
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for edge in (address, address + (pages + 1) * PAGE):
            if self.mprotect(ctypes.c_void_p(edge), PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        array = np.frombuffer(memory, like.dtype, like.size, start).reshape(like.shape)
        array[...] = like
        return array


class Surrounded:
    """Makes arrays with NaN (or the largest int) on both sides; `check` sees whether it is still there."""

    def __init__(self):
        self.kept = []

    def __call__(self, like, gap=67):
        like = np.asarray(like)
        whole = np.empty(like.size + 2 * gap, like.dtype)
        whole.fill(np.nan if like.dtype.kind == "f" else np.iinfo(like.dtype).max)
        array = whole[gap : gap + like.size].reshape(like.shape)
        array[...] = like
        self.kept.append((whole, whole.tobytes(), array, gap))
        return array

    def check(self):
        for whole, before, array, gap in self.kept:
            edge = gap * whole.itemsize
            after = whole.tobytes()
            assert after[:edge] == before[:edge], array.shape
            assert after[len(after) - edge :] == before[len(after) - edge :], array.shape


DTYPES = np.float64, np.float32
# Sizes that are multiples of nothing, one of everything, and whole vectors.
SIZES = [(1, 1, 1), (7, 27, 16), (9, 129, 5), (19, 300, 13), (8, 16, 8), (13, 11, 67)]


def use_kernels(place):
    """Call every public kernel on arrays from `place`; whatever it computes must be finite."""
    for (N, V, D), dtype in itertools.product(SIZES, DTYPES):
        rng = np.random.default_rng([N, V, D])
        ids, positions = place(rng.integers(V, size=N)), place(rng.integers(3, size=N))
        wte, wpe, head = (place(rng.normal(size=shape).astype(dtype)) for shape in ((V, D), (3, D), (V, D)))
        x, logits, losses = place(np.zeros((N, D), dtype)), place(np.zeros((N, V), dtype)), place(np.zeros(N))
        dlogits, dx = place(np.zeros((N, V), dtype)), place(np.zeros((N, D), dtype))
        dhead, dwte, dwpe = (place(np.zeros(shape, dtype)) for shape in ((V, D), (V, D), (3, D)))
        m, v = place(np.zeros((V, D), dtype)), place(np.zeros((V, D), dtype))
        kernels.embedding_forward(ids, positions, wte, wpe, x)
        kernels.logits_forward(x, head, logits)
        kernels.cross_entropy_forward(logits, ids, losses)
        kernels.cross_entropy_backward(logits, ids, dlogits)
        kernels.logits_backward(x, head, dlogits, dx, dhead)
        kernels.embedding_backward(ids, positions, dx, dwte, dwpe)
        norm = kernels.grad_norm(dhead)
        kernels.adam_step(dhead, head, m, v, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, t=1, zero_grad=True)
        for result in (x, logits, losses, dlogits, dx, dhead, dwte, dwpe, head, m, v, norm):
            assert np.isfinite(result).all(), (N, V, D)


def use_optimizers(place):
    """Steps over lists of arrays from `place`, with and without momentum."""
    rng = np.random.default_rng(0)
    shapes = [(1,), (7,), (8,), (3, 5), (67,), (129,)]
    makes = fl.Adam, fl.AdamW, fl.SGD, lambda params: fl.SGD(params=params, momentum=0.9)
    for make, dtype in itertools.product(makes, DTYPES):
        params = [place(rng.normal(size=shape).astype(dtype)) for shape in shapes]
        optimizer = make(params=params)
        for _ in range(3):
            optimizer.step([place(rng.normal(size=shape).astype(dtype)) for shape in shapes])
        assert all(np.isfinite(p).all() for p in params)


def use_models(place):
    """A few steps of every model whose parameters, gradients and moments come from `place`."""
    for name in cases.MODELS:
        twin = cases.make(name, schedule=fl.schedules.constant())
        everything, _ = cases.data(name)
        data, _ = twin.prepare(*everything)
        model = twin.model
        model.params.flat, model.grads.flat = place(model.params.flat), place(model.grads.flat)
        core, batch = model.make_core(), model.make_batch(data)
        moments = [place(np.zeros(model.num_params, model.dtype)) for _ in range(2)]
        adam = _core.engine(model.dtype).Adam(
            [model.params.flat], [moments], [0.0], [model.grads.flat], 0.9, 0.99, 1e-8, False
        )
        loop = _core.variant.Loop(core, adam)
        losses, norms = place(np.zeros(20)), place(np.zeros(20))
        indices, splits = place(np.arange(60) % data.n_examples), place(np.arange(21) * 3)
        assert loop.run(batch, indices, splits, 1, place(np.full(20, 1e-3)), 1.0, losses, norms) == 20
        for result in (model.params.flat, model.grads.flat, losses, norms, *moments):
            assert np.isfinite(result).all(), name


USES = [use_kernels, use_optimizers, use_models]


@pytest.mark.parametrize("use", USES)
def test_nothing_outside_an_array_is_written_or_read_into_a_result(use):
    place = Surrounded()
    use(place)
    place.check()


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made by Linux's mprotect")
@pytest.mark.parametrize("edge", ["behind", "front"])
@pytest.mark.parametrize("isa", _core.supported)
def test_nothing_outside_an_array_is_touched(isa, edge):
    """A kernel that reads past the end, even without using what it read, ends the process."""
    done = cases.python(__file__, edge, env={**os.environ, "FASTLOOP_ISA": isa})
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stdout.split() == [use.__name__ for use in USES]


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made by Linux's mprotect")
def test_a_guard_page_ends_the_process():
    code = f"""
import sys
sys.path.insert(0, {str(cases.Path(__file__).parent)!r})
import ctypes, numpy as np, test_overrun
array = test_overrun.Guarded(front=False)(np.zeros(5))
ctypes.c_double.from_address(array.ctypes.data + 40).value
"""
    assert cases.python("-c", code).returncode == -11


if __name__ == "__main__":
    for use in USES:
        use(Guarded(sys.argv[1] == "front"))
        print(use.__name__, flush=True)
