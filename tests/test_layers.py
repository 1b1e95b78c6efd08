"""Each layer alone, in every compiled variant: its NumPy twin, the complex step, guarded memory, and its bits.

A new layer is one more row of LAYERS: how it is made, its twin, the width of x, and the shapes of its weights.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import pytest

import fastloop as fl
from fastloop.reference import _rmsnorm

GUARD = 64      # values of NaN before and after each array
LENGTH = 5      # of a document
IDS = 4


class Row(NamedTuple):
    make: object        # the compiled layer, of the compiled module and its Value x
    twin: object        # y (N, width) of what goes in (x, where there is one, then the weights), the ids and positions
    width: int          # of x, or 0
    weights: tuple      # shapes


def attention(qkv, ids, positions, heads=2):
    """Causal attention: what a token of a document makes of it and those before."""
    D = qkv.shape[1] // 3
    size, out = D // heads, np.empty((len(qkv), D), qkv.dtype)
    for n in range(len(qkv)):
        seen = slice(n - positions[n], n + 1)
        for at in range(0, D, size):
            q = qkv[n, at : at + size]
            k, v = (qkv[seen, part * D + at : part * D + at + size] for part in (1, 2))
            e = np.exp(k @ q / np.sqrt(size))
            out[n, at : at + size] = e / e.sum() @ v
    return out


def head(x, lm_head, ids, positions):
    logits = x @ lm_head.T
    return (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(x)), ids])[:, None]


def linear(x, W, ids, positions):
    return x @ W.T


def activation(kind):
    return lambda variant, x: variant.Activation(x, kind)


def matrix(out):
    return lambda variant, x: variant.Linear(x, out, ("w",))


LAYERS = {
    "embedding": Row(lambda variant, x: variant.Embedding(IDS, 11, LENGTH),
                     lambda wte, wpe, ids, positions: wte[ids] + wpe[positions], 0, ((IDS, 11), (LENGTH, 11))),
    "relu": Row(activation("relu"), lambda x, ids, positions: x * (x.real > 0.0), 5, ()),
    "tanh": Row(activation("tanh"), lambda x, ids, positions: np.tanh(x), 5, ()),
    "rmsnorm of 1": Row(lambda variant, x: variant.RMSNorm(x), lambda x, ids, positions: _rmsnorm(x)[0], 1, ()),
    "rmsnorm": Row(lambda variant, x: variant.RMSNorm(x), lambda x, ids, positions: _rmsnorm(x)[0], 13, ()),
    "linear": Row(matrix(11), linear, 5, ((11, 5),)),
    "linear, packed": Row(matrix(71), linear, 67, ((71, 67),)),
    "attention": Row(lambda variant, x: variant.Attention(x, 2, LENGTH), attention, 18, ()),
    "attention of 1": Row(lambda variant, x: variant.Attention(x, 2, LENGTH), attention, 6, ()),
    "head": Row(lambda variant, x: variant.Head(x, IDS, LENGTH), head, 7, ((IDS, 7),)),
    "head of many ids": Row(lambda variant, x: variant.Head(x, 150, LENGTH), head, 3, ((150, 3),)),
    "head of many more ids": Row(lambda variant, x: variant.Head(x, 2100, LENGTH), head, 2, ((2100, 2),)),
}


def guarded(shape, values=np.nan):
    """An array of that shape, NaN on both sides of it, and the whole."""
    whole = np.full(np.prod(shape, dtype=int) + 2 * GUARD, np.nan)
    inner = whole[GUARD:-GUARD].reshape(shape)
    inner[...] = values
    return inner, whole


def places(N):
    """The ids and positions (N,) of documents of LENGTH end to end."""
    return np.random.default_rng(7).integers(0, IDS, N), np.arange(N) % LENGTH


def run(variant, name, inputs, dy, parts=1):
    """y and the gradients of the inputs, all of whose neighbours in memory are still NaN."""
    row, N = LAYERS[name], len(dy)
    ids, positions = places(N)
    x = [row.width and inputs[0], inputs[bool(row.width) :]]
    flat = np.concatenate([np.empty(0), *(w.reshape(-1) for w in x[1])])
    given = {"x": guarded((N, row.width), x[0]), "dy": guarded(dy.shape, dy), "params": guarded(flat.shape, flat)}
    outputs = {"y": guarded(dy.shape), "dx": guarded((N, row.width)), "grads": guarded(flat.shape)}
    before = {key: whole.copy() for key, (_, whole) in given.items()}
    addresses = {key: array.ctypes.data for key, (array, _) in {**given, **outputs}.items()}
    layer = row.make(variant, variant.Value(row.width))
    variant.one_layer(layer, N, parts, {**addresses, "ids": ids.ctypes.data, "positions": positions.ctypes.data})
    for key, (_, whole) in given.items():
        np.testing.assert_array_equal(whole, before[key])
    for _, whole in outputs.values():
        assert np.isnan(whole[:GUARD]).all()
        assert np.isnan(whole[-GUARD:]).all()
    ends = np.cumsum([np.prod(shape) for shape in row.weights], dtype=int)[:-1]
    grads = [g.reshape(s) for g, s in zip(np.split(outputs["grads"][0], ends), row.weights, strict=False)]
    return [outputs["y"][0], *([outputs["dx"][0]] if row.width else []), *grads]


def problem(name, N):
    row, rng = LAYERS[name], np.random.default_rng(N)
    inputs = [rng.normal(size=shape) for shape in ([(N, row.width)] if row.width else []) + list(row.weights)]
    return inputs, rng.normal(size=row.twin(*inputs, *places(N)).shape)


@pytest.mark.parametrize("N", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_what_its_twin_gives(variant, name, N):
    inputs, dy = problem(name, N)
    y, *_ = run(variant, name, inputs, dy)
    np.testing.assert_allclose(y, LAYERS[name].twin(*inputs, *places(N)), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("N", [1, 7, 9, 25])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_gradients_are_the_complex_step(variant, name, N):
    inputs, dy = problem(name, N)
    _, *grads = run(variant, name, inputs, dy)
    directions = np.random.default_rng(0)
    for i, grad in enumerate(grads):
        # Every element where they are few; else along directions, each of which every element enters.
        few = grad.size <= 300
        for j in range(grad.size if few else 30):
            d = np.zeros(grad.shape)
            if few:
                d.flat[j] = 1.0
            else:
                d[...] = directions.normal(size=grad.shape)
            stepped = [x.astype(complex) for x in inputs]
            stepped[i] += 1e-30j * d
            expected = (dy * LAYERS[name].twin(*stepped, *places(N)).imag).sum() / 1e-30
            np.testing.assert_allclose((grad * d).sum(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_bits_depend_neither_on_threads_nor_on_other_tokens(variant, name, many_threads):
    inputs, dy = problem(name, 40)
    digests = set()
    for threads in (1, 2, 3):
        fl.set_num_threads(threads)
        outputs = run(variant, name, inputs, dy, parts=threads)
        digests.add(hashlib.sha256(b"".join(x.tobytes() for x in outputs)).hexdigest())
    assert len(digests) == 1
    fewer = [x[:10] if LAYERS[name].width and i == 0 else x for i, x in enumerate(inputs)]      # two documents
    first = run(variant, name, fewer, dy[:10])
    np.testing.assert_array_equal(first[0], outputs[0][:10])
    if LAYERS[name].width:
        np.testing.assert_array_equal(first[1], outputs[1][:10])
