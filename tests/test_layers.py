"""Each layer alone, in every compiled variant: its NumPy twin, the complex step, guarded memory, and its bits.

A new layer is one more row of LAYERS: how the compiled layer is run, its twin, and the shapes of what goes in.
"""

import hashlib

import numpy as np
import pytest

import fastloop as fl
from fastloop.reference import _rmsnorm

GUARD = 64      # values of NaN before and after each array


def activation(kind):
    def run(variant, x, dy, y, dx):
        variant.one_activation(kind, *x.shape, *addresses(x, y, dy, dx))

    return run


def rmsnorm(variant, x, dy, y, dx):
    variant.one_rmsnorm(*x.shape, *addresses(x, y, dy, dx))


def linear(pack):
    def run(variant, x, W, dy, y, dx, dW):
        variant.one_linear(*x.shape, len(W), pack, *addresses(W, x, y, dy, dx, dW))

    return run


# The compiled layer, its twin y of what goes in, and the shapes of that for N tokens.
LAYERS = {
    "relu": (activation("relu"), lambda x: x * (x.real > 0.0), lambda N: [(N, 5)]),
    "tanh": (activation("tanh"), np.tanh, lambda N: [(N, 5)]),
    "rmsnorm of 1": (rmsnorm, lambda x: _rmsnorm(x)[0], lambda N: [(N, 1)]),
    "rmsnorm": (rmsnorm, lambda x: _rmsnorm(x)[0], lambda N: [(N, 13)]),
    "linear": (linear(False), lambda x, W: x @ W.T, lambda N: [(N, 5), (11, 5)]),
    "linear of 64": (linear(False), lambda x, W: x @ W.T, lambda N: [(N, 64), (48, 64)]),
    "packed linear": (linear(True), lambda x, W: x @ W.T, lambda N: [(N, 29), (35, 29)]),
}


def addresses(*arrays):
    return [array.ctypes.data for array in arrays]


def guarded(shape, values=np.nan):
    """An array of that shape, NaN on both sides of it, and the whole."""
    whole = np.full(np.prod(shape, dtype=int) + 2 * GUARD, np.nan)
    inner = whole[GUARD:-GUARD].reshape(shape)
    inner[...] = values
    return inner, whole


def run(variant, name, inputs, dy):
    """y and the gradients of the inputs, all of whose neighbours in memory are still NaN."""
    compiled = LAYERS[name][0]
    given = [guarded(x.shape, x) for x in (*inputs, dy)]
    outputs = [guarded(shape) for shape in (dy.shape, *(x.shape for x in inputs))]
    before = [whole.copy() for _, whole in given]
    compiled(variant, *(x for x, _ in given), *(x for x, _ in outputs))
    for (_, whole), copy in zip(given, before, strict=True):
        np.testing.assert_array_equal(whole, copy)
    for _, whole in outputs:
        assert np.isnan(whole[:GUARD]).all()
        assert np.isnan(whole[-GUARD:]).all()
    return [x for x, _ in outputs]


def problem(name, N):
    _, twin, shapes = LAYERS[name]
    rng = np.random.default_rng(N)
    inputs = [rng.normal(size=shape) for shape in shapes(N)]
    return inputs, rng.normal(size=twin(*inputs).shape)


@pytest.mark.parametrize("N", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_what_its_twin_gives(variant, name, N):
    inputs, dy = problem(name, N)
    y, *_ = run(variant, name, inputs, dy)
    np.testing.assert_allclose(y, LAYERS[name][1](*inputs), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("N", [1, 7, 9])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_gradients_are_the_complex_step(variant, name, N):
    inputs, dy = problem(name, N)
    _, *grads = run(variant, name, inputs, dy)
    for i, grad in enumerate(grads):
        expected = np.empty(grad.size)
        for j in range(grad.size):
            stepped = [x.astype(complex) for x in inputs]
            stepped[i].flat[j] += 1e-30j
            expected[j] = (dy * LAYERS[name][1](*stepped).imag).sum() / 1e-30
        np.testing.assert_allclose(grad.reshape(-1), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_bits_depend_neither_on_threads_nor_on_other_tokens(variant, name, many_threads):
    inputs, dy = problem(name, 40)
    digests = set()
    for threads in (1, 2, 3):
        fl.set_num_threads(threads)
        outputs = run(variant, name, inputs, dy)
        digests.add(hashlib.sha256(b"".join(x.tobytes() for x in outputs)).hexdigest())
    assert len(digests) == 1
    first = run(variant, name, [inputs[0][:9], *inputs[1:]], dy[:9])
    np.testing.assert_array_equal(first[0], outputs[0][:9])
    np.testing.assert_array_equal(first[1], outputs[1][:9])
