"""The compiled model's gradients against complex-step derivatives of its NumPy twin.

f(p + ih) = f(p) + ih f'(p) + O(h^2): the imaginary part at h = 1e-30 is the derivative to the last bit, since nothing
is subtracted (Squire and Trapp, SIAM Review 40, 1998).  Only the twin's forward pass is used.
"""

import functools

import numpy as np
import pytest

from fastloop.reference import BigramStep

STEP = 1e-30
# By the character of the dtype, the largest error of a gradient beside its largest value, of a loss beside itself, and
# of the second of two backwards (rtol, and atol beside the largest value).
GRADIENT, LOSS = {"d": 1e-13, "f": 1e-6}, {"d": 1e-14, "f": 1e-6}
TWICE = {"d": (1e-12, 1e-15), "f": (1e-4, 1e-7)}
# V, D, T and the documents' lengths; beyond a vocabulary of 2,048 backward computes the logits a second time.
CASES = {
    "one of everything": (1, 1, 1, [1]),
    "default job": (27, 16, 8, [5]),
    "cut documents": (27, 16, 8, [8, 9, 20, 1]),
    "batch of 12": (27, 16, 8, [1 + i * 7 % 11 for i in range(12)]),
    "two chunks of tokens": (5, 3, 4, [4, 1, 3] * 33),
    "eight chunks of tokens": (11, 4, 9, [9, 9, 2] * 52),
    "odd sizes": (129, 5, 3, [3, 2, 1, 3]),
    "three tiles": (300, 13, 4, [4, 3, 4]),
    "logits not kept": (2100, 2, 3, [3, 1]),
    "logits not kept, two panels": (2177, 1, 9, [9, 2]),
}


@functools.cache
def setting(case, dtype):
    """Parameters, documents (ids, starts), the batch as arrays, and the loss's complex-step gradient (in float64)."""
    V, D, T, lengths = CASES[case]
    rng = np.random.default_rng(len(case))
    params = rng.normal(0.0, 0.5, (2 * V + T) * D).astype(dtype)
    starts = np.cumsum([0, *lengths])
    ids = rng.integers(0, V, starts[-1] + 1)
    places = [(start, t, min(n, T)) for start, n in zip(starts, lengths, strict=False) for t in range(min(n, T))]
    inputs, targets, positions = np.array([(ids[s + t], ids[s + t + 1], t) for s, t, _ in places]).T
    weights = np.array([1.0 / (len(lengths) * n) for *_, n in places])
    batch = inputs, targets, positions, weights

    twin = BigramStep(params.astype(complex), V, D, T, N=len(inputs))
    gradient = np.empty(params.size)
    for i in range(params.size):
        twin.params[i] += 1j * STEP
        gradient[i] = twin.forward(*batch).imag / STEP
        twin.params[i] = params[i]
    return params, ids.astype(np.int32), starts, batch, gradient


def bound(engine, dtype, case):
    """The compiled loop over the case's parameters, and its gradient buffer."""
    V, D, T, lengths = CASES[case]
    params, ids, starts, *_ = setting(case, dtype)
    gradient = np.full_like(params, np.nan)
    batch = engine.TokenBatch(engine.TokenData(ids, starts, T))
    batch.take(np.arange(len(lengths)), float(len(lengths)))
    return engine.Loop(engine.Bigram(params, gradient, V, D, T), None), batch, gradient


@pytest.mark.parametrize("case", CASES)
def test_every_gradient_equals_the_complex_step_derivative(engine, dtype, case):
    V, D, T, _ = CASES[case]
    *_, expected = setting(case, dtype)
    loop, batch, gradient = bound(engine, dtype, case)
    loop.zero_grad()
    loop.forward(batch)
    loop.backward()
    for name, first, last in (("wte", 0, V), ("wpe", V, V + T), ("lm_head", V + T, 2 * V + T)):
        g, e = gradient[first * D:last * D], expected[first * D:last * D]
        error = abs(g - e).max()
        assert error <= GRADIENT[dtype.char] * abs(e).max(), f"{name}: error {error:.1e}, largest {abs(e).max():.1e}"


@pytest.mark.parametrize("case", CASES)
def test_loss_and_batch_equal_the_twins(engine, dtype, case):
    V, D, T, _ = CASES[case]
    params, _, _, arrays, _ = setting(case, dtype)
    loop, batch, _ = bound(engine, dtype, case)
    for given, expected in zip(batch.arrays(), arrays, strict=True):
        assert given == expected.tolist()
    twin = BigramStep(params.astype(np.float64), V, D, T, N=len(arrays[0]))
    assert loop.forward(batch) == pytest.approx(twin.forward(*arrays), rel=LOSS[dtype.char], abs=0.0)
    ones = np.ones(len(arrays[0]))
    assert loop.total_loss() == pytest.approx(twin.forward(*arrays[:3], ones), rel=LOSS[dtype.char], abs=0.0)


@pytest.mark.parametrize("case", CASES)
def test_backward_adds(engine, dtype, case):
    loop, batch, gradient = bound(engine, dtype, case)
    loop.zero_grad()
    loop.forward(batch)
    loop.backward()
    once = gradient.copy()
    loop.forward(batch)
    loop.backward()
    rtol, atol = TWICE[dtype.char]
    np.testing.assert_allclose(gradient, 2.0 * once, rtol=rtol, atol=atol * abs(once).max())


@pytest.mark.parametrize("case", ["eight chunks of tokens", "three tiles", "logits not kept, two panels"])
def test_the_gradient_has_the_same_bits_at_any_number_of_threads(engine, dtype, case):
    loop, batch, gradient = bound(engine, dtype, case)
    work, found = engine.set_work_per_thread(1), set()
    try:
        for threads in (1, 2, 3, 8):
            engine.set_max_threads(threads)
            loop.zero_grad()
            loop.forward(batch)
            loop.backward()
            found.add(gradient.tobytes())
    finally:
        engine.set_work_per_thread(work)
        engine.set_max_threads(1)
    assert len(found) == 1


def test_the_twin_s_own_gradient(dtype):
    for case in ("default job", "batch of 12", "odd sizes"):
        V, D, T, _ = CASES[case]
        params, _, _, batch, expected = setting(case, dtype)
        twin = BigramStep(params.copy(), V, D, T, N=len(batch[0]))
        twin.forward(*batch)
        twin.backward()
        assert abs(twin.grads - expected).max() <= GRADIENT[dtype.char] * abs(expected).max()
