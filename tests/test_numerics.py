"""Accuracy against 200-bit arithmetic, the ends of the range of each precision, and the floating-point environment.

Errors are counted in ULP, units in the last place: the spacing of the precision's numbers at the exact value, or at a
stated size.
"""

import functools
import math
import sys

import mpmath
import numpy as np
import pytest

from fastloop import kernels, reference

INF, NAN = math.inf, math.nan
DOUBLE = np.dtype(np.float64)


def both(*, float64, float32):
    """pytest's parameters (dtype, ...): every row of values with the precision that it is for."""
    rows = [(np.dtype(name), row) for name, rows in (("float64", float64), ("float32", float32)) for row in rows]
    return [(dtype, *row) if isinstance(row, tuple) else (dtype, row) for dtype, row in rows]


@pytest.fixture(autouse=True)
def bits():
    with mpmath.workprec(200):
        yield


def ulps(computed, exact, at_least=0.0, dtype=DOUBLE):
    """The largest error in ULP of max(|exact|, at_least).  NaN where something computed is NaN, so no bound holds."""
    errors = [
        float((mpmath.mpf(c) - e) / float(np.spacing(dtype.type(max(abs(float(e)), at_least)))))
        for c, e in zip(np.atleast_1d(computed).tolist(), np.atleast_1d(exact).tolist(), strict=True)
    ]
    return np.abs(errors).max()


# --- Adam -----------------------------------------------------------------------------------------------------


def exact_adam(grads, param, lr, beta1, beta2, eps):
    p = [mpmath.mpf(x) for x in param.tolist()]
    m = [mpmath.mpf(0)] * len(p)
    v = [mpmath.mpf(0)] * len(p)
    lr, beta1, beta2, eps = map(mpmath.mpf, (lr, beta1, beta2, eps))
    for t, grad in enumerate(grads.tolist(), 1):
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        for i, g in enumerate(map(mpmath.mpf, grad)):
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g**2
            p[i] -= lr * (m[i] / c1) / (mpmath.sqrt(v[i] / c2) + eps)
    return np.array(p)


# The draws are fixed, and parameters stay clear of zero, where the rounding of the larger values before would
# be counted in ever smaller units.
@pytest.mark.parametrize("steps, bound", [(1, 1.0), (2, 1.0), (1000, 32.0)])
@pytest.mark.parametrize("betas", [(0.85, 0.99), (0.9, 0.999)])
def test_adam(variant, dtype, betas, steps, bound):
    rng = np.random.default_rng(1)
    sizes = np.logspace(-6, 0, 16)
    grads = (sizes * rng.normal(size=(steps, 16))).astype(dtype)
    param = (rng.uniform(0.1, 1.0, 16) * rng.choice([-1.0, 1.0], 16)).astype(dtype)
    betas = [float(dtype.type(beta)) for beta in betas]
    expected = exact_adam(grads, param, 1e-3, *betas, 1e-8)
    m, v = np.zeros((2, 16), dtype)
    for t, grad in enumerate(grads, 1):
        kernels.adam_step(grad, param, m, v, lr=1e-3, beta1=betas[0], beta2=betas[1], eps=1e-8, t=t)
    assert ulps(param, expected, 1e-3, dtype) <= bound


@pytest.mark.parametrize("t", [1, 2, 3, 10, 1000, 10**6, 2**53])
@pytest.mark.parametrize("betas", [(0.85, 0.99), (0.9, 0.999), (0.99, 0.9999), (0.0, 0.0)])
def test_adam_s_bias_correction(variant, dtype, betas, t):
    """The update alone, of a parameter that is zero, in its own ULP: 1 - beta^t loses digits if taken as it stands."""
    betas = [float(dtype.type(beta)) for beta in betas]
    beta1, beta2 = map(mpmath.mpf, betas)
    grad = np.logspace(-6, 0, 50).astype(dtype)
    param, m, v = np.zeros((3, 50), dtype)
    kernels.adam_step(grad, param, m, v, lr=0.01, beta1=betas[0], beta2=betas[1], eps=1e-8, t=t)
    expected = [
        -mpmath.mpf(0.01) * ((1 - beta1) * g / (1 - beta1**t))
        / (mpmath.sqrt((1 - beta2) * g**2 / (1 - beta2**t)) + mpmath.mpf(1e-8))
        for g in map(mpmath.mpf, grad.tolist())
    ]
    assert ulps(param, np.array(expected), dtype=dtype) <= 5.0


@pytest.mark.parametrize("dtype, size", both(
    float64=[1e-150, 1e-140, 1e140, 1.2e154, 1e155, 1e200, 1e300], float32=[1e-20, 1e-14, 1e14, 1e19, 2e19, 1e30, 1e38],
))
def test_adam_of_a_gradient_far_from_one(variant, dtype, size):
    """Even one whose square is too large: v is then infinity and the parameter stays where it is."""
    grad = np.linspace(-size, size, 27).astype(dtype)
    got, wanted = [np.stack([np.full(27, 0.5), *np.zeros((2, 27))]).astype(dtype) for _ in range(2)]
    with np.errstate(over="ignore"):
        for t in (1, 2):
            kernels.adam_step(grad, *got, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, t=t)
            reference.adam_step(grad, *wanted, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, t=t)
    np.testing.assert_allclose(got, wanted, rtol=50 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype, eps", both(
    float64=[5e-324, 1e-310, 1e-308, 1e-300], float32=[2e-45, 1e-40, 1e-38, 1e-30],
))
def test_adam_without_a_gradient_at_the_smallest_eps(variant, dtype, eps):
    param, (grad, m, v) = np.full(9, 0.5, dtype), np.zeros((3, 9), dtype)
    kernels.adam_step(grad, param, m, v, lr=0.01, beta1=0.9, beta2=0.999, eps=eps, t=1)
    assert (param == 0.5).all()


@pytest.mark.parametrize("dtype, size, eps", both(
    float64=[(1e-148, 1e-150), (1e-146, 1e-140), (1e-153, 1e-160), (1e-146, 1e-8), (1e-3, 1e-8)],
    float32=[(1e-15, 1e-16), (1e-15, 1e-12), (1e-20, 1e-8), (1e-3, 1e-8)],
))
def test_adam_takes_the_right_steps_however_small_gradients_and_eps_are(variant, dtype, size, eps):
    """A gradient that stays the same: each step is lr g / (g + eps), whichever moments are set to zero on the way."""
    grad, (param, m, v), twin = np.full(11, size, dtype), np.zeros((3, 11), dtype), np.zeros((3, 11), dtype)
    for t in range(1, 101):
        kernels.adam_step(grad, param, m, v, lr=0.01, beta1=0.9, beta2=0.99, eps=eps, t=t)
        reference.adam_step(grad, *twin, lr=0.01, beta1=0.9, beta2=0.99, eps=eps, t=t)
    rtol = {"d": 1e-9, "f": 1e-4}[dtype.char]
    np.testing.assert_allclose(param, -0.01 * 100 * size / (size + eps), rtol=rtol)
    np.testing.assert_allclose(twin[0], param, rtol=rtol)


@pytest.mark.parametrize("dtype, beta2, small", both(
    float64=[(0.8, 1e-200), (0.1, 1e-200), (0.01, 1e-200)], float32=[(0.8, 1e-30), (0.1, 1e-30), (0.01, 1e-30)],
))
def test_moments_that_fade_become_zero(variant, dtype, beta2, small):
    param, m, v = np.zeros(3, dtype), np.array([1.0, -1.0, small], dtype), np.array([1.0, small, 1.0], dtype)
    smallest = INF
    for t in range(1, 5001):
        kernels.adam_step(np.zeros(3, dtype), param, m, v, lr=0.01, beta1=0.85, beta2=beta2, eps=1e-8, t=t)
        moments = np.abs([*m, *v])
        smallest = min(smallest, moments[moments > 0.0].min(initial=INF))
    assert smallest > np.finfo(dtype).tiny      # never subnormal
    assert not m.any()
    assert not v.any()
    assert np.isfinite(param).all()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_bad_gradient_spoils_its_own_element_only(variant, dtype, bad):
    for i in range(39):     # in a vector register, and in the rest of a loop
        grad = np.ones(39, dtype)
        grad[i] = bad
        param, m, v = np.zeros((3, 39), dtype)
        kernels.adam_step(grad, param, m, v, lr=0.01, beta1=0.85, beta2=0.99, eps=1e-8, t=1)
        assert np.flatnonzero(~np.isfinite(param)).tolist() == [i]
        assert np.flatnonzero(~np.isfinite(m)).tolist() == [i]


# --- softmax cross-entropy ------------------------------------------------------------------------------------


def exact_loss(logits, target):
    logits = [mpmath.mpf(x) for x in logits.tolist()]
    return mpmath.log(mpmath.fsum(map(mpmath.exp, logits))) - logits[target]


def draw_logits(V, scale, dtype):
    logits = (scale * np.random.default_rng(V).normal(size=V)).astype(dtype)
    return logits, {"best": logits.argmax(), "worst": logits.argmin(), "last": V - 1}


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("V", [1, 2, 27, 300, 3001])
def test_loss(variant, dtype, V, scale):
    logits, targets = draw_logits(V, scale, dtype)
    for where, target in targets.items():
        losses = np.full(1, NAN)
        kernels.cross_entropy_forward(logits[None], np.array([target]), losses)
        assert ulps(losses, exact_loss(logits, target), 1.0, dtype) <= 4.0, where


def model_loss(engine, logits, target):
    """The model's own loss, a tile of the vocabulary at a time: with D = 1 and an embedding of 1, logits = lm_head."""
    V = logits.size
    params = np.concatenate([np.ones(V), np.zeros(1), logits]).astype(logits.dtype)
    data = engine.TokenData(np.array([0, target], np.int32), np.array([0, 1]), 1)
    batch = engine.TokenBatch(data)
    batch.take(np.zeros(1, np.int64), 1.0)
    gradient = np.zeros_like(params)
    loop = engine.Loop(engine.Bigram(params, gradient, V, 1, 1), None)
    loss = loop.forward(batch)
    loop.backward()
    return loss, gradient[-V:]


@functools.cache
def large(dtype):
    """50,257 logits that grow on the whole, so that nearly every tile brings a new largest, and exact losses."""
    with mpmath.workprec(200):
        logits, _ = draw_logits(50257, 2.0, dtype)
        logits += np.linspace(0.0, 10.0, logits.size).astype(dtype)
        best = int(logits.argmax())
        loss = exact_loss(logits, best)
        return logits, {best: loss, 0: loss + mpmath.mpf(float(logits[best])) - mpmath.mpf(float(logits[0]))}


def test_loss_of_a_large_vocabulary(engine, dtype):
    logits, expected = large(dtype)
    for target, loss in expected.items():
        for given in (logits, logits[::-1].copy()):     # the second time, the largest comes early
            at = int(np.flatnonzero(given == logits[target])[0])
            losses = np.full(1, NAN)
            kernels.cross_entropy_forward(given[None], np.array([at]), losses)
            assert ulps(losses, loss, 1.0, dtype) <= 4.0
            assert ulps(model_loss(engine, given, at)[0], loss, 1.0, dtype) <= 4.0


@pytest.mark.parametrize("dtype, gap", both(float64=[36.0, 100.0, 700.0], float32=[16.0, 50.0, 85.0]))
def test_a_confident_model_keeps_its_digits(engine, dtype, gap):
    """Loss 2e-16 (float32: 1e-7) and less, where log(sum) and p - 1 are 0: still to a few ULP of the value itself."""
    logits = np.array([0.0, gap, -1.0], dtype)
    exact = [mpmath.exp(-mpmath.mpf(gap)), mpmath.exp(-mpmath.mpf(gap) - 1)]
    total = 1 + sum(exact)
    losses, dlogits = np.full(1, NAN), np.full((1, 3), NAN, dtype)
    kernels.cross_entropy_forward(logits[None], np.array([1]), losses)
    loss = kernels.cross_entropy_backward(logits[None], np.array([1]), dlogits)
    assert losses[0] == loss
    assert ulps(loss, mpmath.log1p(sum(exact)), dtype=dtype) <= 4.0
    assert ulps(dlogits[0], [exact[0] / total, -sum(exact) / total, exact[1] / total], dtype=dtype) <= 4.0
    model, gradient = model_loss(engine, logits, 1)
    assert (model, gradient.tolist()) == (loss, dlogits[0].tolist())


@pytest.mark.parametrize("dtype, largest", both(float64=[708.0 - math.log(2048)], float32=[87.0 - math.log(2048)]))
def test_exp(variant, dtype, largest):
    """exp by way of a softmax of two: dlogits[1] = e / (1 + e) / N with e = exp(-x), and N a power of two."""
    x = np.concatenate([np.linspace(0.0, largest, 2000), np.logspace(-17, 0, 48)]).astype(dtype)
    logits = np.stack([np.zeros_like(x), -x], axis=1)
    dlogits = np.full_like(logits, NAN)
    kernels.cross_entropy_backward(logits, np.zeros(2048, np.int64), dlogits)
    exact = [e / (1 + e) / 2048 for e in (mpmath.exp(-mpmath.mpf(a)) for a in x.tolist())]
    assert ulps(dlogits[:, 1], exact, dtype=dtype) <= 2.5


@pytest.mark.parametrize("dtype, x", both(
    float64=[[708.01, 709.0, 745.0, 746.0, 1000.0, 1e10, 1e300, 1.7e308]],
    float32=[[87.01, 88.0, 103.0, 104.0, 1000.0, 1e10, 1e30, 3.4e38]],
))
def test_exp_vanishes_without_subnormal_numbers(variant, dtype, x):
    x = np.array(x, dtype)
    logits = np.stack([np.zeros_like(x), -x], axis=1)
    dlogits = np.full_like(logits, NAN)
    assert kernels.cross_entropy_backward(logits, np.zeros(8, np.int64), dlogits) == 0.0
    assert not dlogits.any()


def ends(huge, tiny):
    """(logits, target, loss, probabilities) at the ends of a range; twice `huge` is outside it."""
    return [
        ([huge, -huge], 0, 0.0, [1.0, 0.0]),
        ([huge, huge, -huge], 1, math.log(2.0), [0.5, 0.5, 0.0]),
        ([-huge, -huge], 0, math.log(2.0), [0.5, 0.5]),
        ([huge / 8, -huge / 8], 1, huge / 4, [1.0, 0.0]),
        ([0.0] * 27, 26, math.log(27.0), [1 / 27] * 27),
        ([-INF, 0.0, 0.0], 1, math.log(2.0), [0.0, 0.5, 0.5]),
        ([-INF, huge], 1, 0.0, [0.0, 1.0]),
        ([tiny, -tiny], 0, math.log(2.0), [0.5, 0.5]),
    ]


@pytest.mark.parametrize("dtype, logits, target, loss, probabilities", both(
    float64=ends(2.0**1023, 2.0**-1074),
    float32=[*ends(2.0**127, 2.0**-149), ([2.0**127, -2.0**127], 1, 2.0**128, [1.0, 0.0])],
))
def test_the_ends_of_the_range(variant, dtype, logits, target, loss, probabilities):
    logits, targets = np.array([logits], dtype), np.array([target])
    losses, dlogits = np.full(1, NAN), np.full(logits.shape, NAN, dtype)
    kernels.cross_entropy_forward(logits, targets, losses)
    assert losses[0] == pytest.approx(loss, rel=1e-15, abs=0.0)
    assert kernels.cross_entropy_backward(logits, targets, dlogits) == losses[0]
    expected = np.array(probabilities)
    expected[target] -= 1.0
    np.testing.assert_allclose(dlogits[0], expected, rtol=5 * np.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("V", [2, 130, 2100])
@pytest.mark.parametrize("values, target", [
    ([-INF, 0.0], 0), ([-INF, -INF], 0), ([-INF, -INF], 1),
    ([INF, 0.0], 0), ([INF, 0.0], 1), ([INF, INF], 0), ([INF, -INF], 1),
    ([NAN, 0.0], 0), ([NAN, 0.0], 1), ([NAN, NAN], 1), ([NAN, INF], 1), ([NAN, -INF], 0),
], ids=str)
def test_what_has_no_finite_loss_raises(engine, dtype, values, target, V):
    """The two values at the ends of a row, filled up with the second; no loss comes out finite by mistake."""
    row = np.full(V, values[1], dtype)
    row[0] = values[0]
    target = target * (V - 1)
    for given, at in ((row, target), (row[::-1].copy(), V - 1 - target)):
        losses = np.full(1, NAN)
        with pytest.raises(FloatingPointError, match=r"^losses\[0\] = (inf|nan): targets\[0\] = "):
            kernels.cross_entropy_forward(given[None], np.array([at]), losses)
        with pytest.raises(FloatingPointError, match=r"^losses\[0\] = (inf|nan): targets\[0\] = "):
            kernels.cross_entropy_backward(given[None], np.array([at]), np.full((1, V), NAN, dtype))
        assert not math.isfinite(losses[0])
        assert not math.isfinite(model_loss(engine, given, at)[0])


def test_a_loss_beyond_float64_raises(variant):
    """The loss itself is 2e308."""
    for call in (kernels.cross_entropy_forward, kernels.cross_entropy_backward):
        with pytest.raises(FloatingPointError, match=r"^losses\[0\] = inf: targets\[0\] = 1"):
            call(np.array([[1e308, -1e308]]), np.array([1]), np.empty(1 if "forward" in call.__name__ else (1, 2)))
    assert model_loss(variant, np.array([1e308, -1e308]), 1)[0] == INF


def test_the_mean_of_many_losses(variant, dtype):
    """The sum is compensated, so the rounding of a mean does not grow with the number of rows."""
    N = 50000
    logits = (np.random.default_rng(0).normal(size=(N, 2)) * 3.0).astype(dtype)
    targets, losses = np.arange(N) % 2, np.empty(N)
    kernels.cross_entropy_forward(logits, targets, losses)
    mean = kernels.cross_entropy_backward(logits, targets, np.empty((N, 2), dtype))
    assert ulps(mean, mpmath.fsum(losses.tolist()) / N) <= 1.5


def test_a_mean_that_overflows_raises(variant):
    logits = np.tile([1.5e308, 0.0], (2, 1))
    with pytest.raises(FloatingPointError, match=r"^the mean of 2 losses is inf; the largest is 1.5e\+308$"):
        kernels.cross_entropy_backward(logits, np.array([1, 1]), np.empty((2, 2)))


# --- the gradient norm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, scale", both(
    float64=[1.0, 1e-150, 1e-160, 1e-320, 1e160, 1e307], float32=[1.0, 1e-20, 1e-40, 1e20, 1e38],
))
@pytest.mark.parametrize("n", [1, 2, 31, 33, 4096, 4097, 100003])
def test_norm(variant, dtype, n, scale):
    """Scaled by what squares would not survive; in subnormal numbers only whole units of the smallest are left."""
    x = (scale * np.random.default_rng(n).normal(size=n) / math.sqrt(n)).astype(dtype)
    exact = mpmath.sqrt(mpmath.fsum(mpmath.mpf(a) ** 2 for a in x.tolist()))
    assert ulps(kernels.grad_norm(x), exact) <= 4.0
    assert ulps(reference.grad_norm(x), exact) <= 64.0


def test_the_norm_of_float32_is_float64(variant):
    for unit in (1.0, 2.0**-149, 2.0**-126, 2.0**120, 2.0**125):
        assert kernels.grad_norm(np.array([3.0, 4.0], np.float32) * np.float32(unit)) == 5.0 * unit
    assert kernels.grad_norm(np.full(4, 2.0**127, np.float32)) == 2.0**128      # more than a float32 can be


def test_norm_is_exact_where_it_can_be(variant):
    for unit in (1.0, 2.0**-1074, 2.0**-1000, 2.0**-545, 2.0**512, 2.0**1020):
        assert kernels.grad_norm(np.array([3.0, 4.0]) * unit) == 5.0 * unit
    assert kernels.grad_norm(np.zeros(100)) == 0.0
    assert kernels.grad_norm(np.full(4, 8e307)) == 1.6e308
    assert kernels.grad_norm(np.full(4, 1e308)) == INF         # the norm itself is 2e308


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("n", [1, 40, 9000])
def test_one_bad_element_shows_in_the_norm(variant, dtype, n, bad):
    for i in {0, n // 2, n - 1}:
        for fill in (0.0, 1.0, *{"d": (1e200, 1e-200), "f": (1e30, 1e-30)}[dtype.char]):
            x = np.full(n, fill, dtype)
            x[i] = bad
            assert not math.isfinite(kernels.grad_norm(x))


# --- the environment ------------------------------------------------------------------------------------------


def test_import_leaves_the_floating_point_environment_alone(variant):
    """A module linked with -ffast-math would flush subnormal numbers to zero, in the whole process."""
    smallest = np.array([sys.float_info.min])
    assert (smallest * 0.5)[0] != 0.0
    assert float(smallest[0]) * 0.5 != 0.0
