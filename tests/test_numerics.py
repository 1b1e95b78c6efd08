"""Accuracy against 200-bit arithmetic, the ends of the range of float64, and the floating-point environment.

Errors are counted in ULP, units in the last place: the spacing of float64 at the exact value, or at a stated size.
"""

import math
import sys

import mpmath
import numpy as np
import pytest

from fastloop import kernels, reference

INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def bits():
    with mpmath.workprec(200):
        yield


def ulps(computed, exact, at_least=0.0):
    """The largest error in ULP of max(|exact|, at_least).  NaN where something computed is NaN, so no bound holds."""
    errors = [
        float((mpmath.mpf(c) - e) / float(np.spacing(max(abs(float(e)), at_least))))
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
def test_adam(variant, betas, steps, bound):
    rng = np.random.default_rng(1)
    sizes = np.logspace(-6, 0, 16)
    grads = sizes * rng.normal(size=(steps, 16))
    param = rng.uniform(0.1, 1.0, 16) * rng.choice([-1.0, 1.0], 16)
    expected = exact_adam(grads, param, 1e-3, *betas, 1e-8)
    m, v = np.zeros((2, 16))
    for t, grad in enumerate(grads, 1):
        kernels.adam_step(grad, param, m, v, lr=1e-3, beta1=betas[0], beta2=betas[1], eps=1e-8, t=t)
    assert ulps(param, expected, at_least=1e-3) <= bound


@pytest.mark.parametrize("t", [1, 2, 3, 10, 1000, 10**6, 2**53])
@pytest.mark.parametrize("betas", [(0.85, 0.99), (0.9, 0.999), (0.99, 0.9999), (0.0, 0.0)])
def test_adam_s_bias_correction(variant, betas, t):
    """The update alone, of a parameter that is zero, in its own ULP: 1 - beta^t loses digits if taken as it stands."""
    beta1, beta2 = map(mpmath.mpf, betas)
    grad = np.logspace(-6, 0, 50)
    param, m, v = np.zeros((3, 50))
    kernels.adam_step(grad, param, m, v, lr=0.01, beta1=betas[0], beta2=betas[1], eps=1e-8, t=t)
    expected = [
        -mpmath.mpf(0.01) * ((1 - beta1) * g / (1 - beta1**t))
        / (mpmath.sqrt((1 - beta2) * g**2 / (1 - beta2**t)) + mpmath.mpf(1e-8))
        for g in map(mpmath.mpf, grad.tolist())
    ]
    assert ulps(param, np.array(expected)) <= 5.0


@pytest.mark.parametrize("size", [1e-150, 1e-140, 1e140, 1.2e154, 1e155, 1e200, 1e300])
def test_adam_of_a_gradient_far_from_one(variant, size):
    """Even one whose square is too large: v is then infinity and the parameter stays where it is."""
    grad = np.linspace(-size, size, 27)
    got, wanted = [np.stack([np.full(27, 0.5), *np.zeros((2, 27))]) for _ in range(2)]
    with np.errstate(over="ignore"):
        for t in (1, 2):
            kernels.adam_step(grad, *got, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, t=t)
            reference.adam_step(grad, *wanted, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, t=t)
    np.testing.assert_allclose(got, wanted, rtol=1e-14, atol=0)


@pytest.mark.parametrize("eps", [5e-324, 1e-310, 1e-308, 1e-300])
def test_adam_without_a_gradient_at_the_smallest_eps(variant, eps):
    param, grad, m, v = np.full(9, 0.5), *np.zeros((3, 9))
    kernels.adam_step(grad, param, m, v, lr=0.01, beta1=0.9, beta2=0.999, eps=eps, t=1)
    assert (param == 0.5).all()


@pytest.mark.parametrize("size, eps", [
    (1e-148, 1e-150), (1e-146, 1e-140), (1e-153, 1e-160), (1e-146, 1e-8), (1e-3, 1e-8),
])
def test_adam_takes_the_right_steps_however_small_gradients_and_eps_are(variant, size, eps):
    """A gradient that stays the same: each step is lr g / (g + eps), whichever moments are set to zero on the way."""
    param, m, v = np.zeros((3, 11))
    twin = np.zeros((3, 11))
    for t in range(1, 101):
        kernels.adam_step(np.full(11, size), param, m, v, lr=0.01, beta1=0.9, beta2=0.99, eps=eps, t=t)
        reference.adam_step(np.full(11, size), *twin, lr=0.01, beta1=0.9, beta2=0.99, eps=eps, t=t)
    np.testing.assert_allclose(param, -0.01 * 100 * size / (size + eps), rtol=1e-9)
    np.testing.assert_allclose(twin[0], param, rtol=1e-9)


@pytest.mark.parametrize("beta2", [0.8, 0.1, 0.01])
def test_moments_that_fade_become_zero(variant, beta2):
    param, m, v = np.zeros(3), np.array([1.0, -1.0, 1e-200]), np.array([1.0, 1e-250, 1.0])
    smallest = INF
    for t in range(1, 5001):
        kernels.adam_step(np.zeros(3), param, m, v, lr=0.01, beta1=0.85, beta2=beta2, eps=1e-8, t=t)
        moments = np.abs([*m, *v])
        smallest = min(smallest, moments[moments > 0.0].min(initial=INF))
    assert smallest > sys.float_info.min    # never subnormal
    assert not m.any()
    assert not v.any()
    assert np.isfinite(param).all()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_bad_gradient_spoils_its_own_element_only(variant, bad):
    for i in range(19):     # in a vector register, and in the rest of a loop
        grad = np.ones(19)
        grad[i] = bad
        param, m, v = np.zeros((3, 19))
        kernels.adam_step(grad, param, m, v, lr=0.01, beta1=0.85, beta2=0.99, eps=1e-8, t=1)
        assert np.flatnonzero(~np.isfinite(param)).tolist() == [i]
        assert np.flatnonzero(~np.isfinite(m)).tolist() == [i]


# --- softmax cross-entropy ------------------------------------------------------------------------------------


def exact_loss(logits, target):
    logits = [mpmath.mpf(x) for x in logits.tolist()]
    return mpmath.log(mpmath.fsum(map(mpmath.exp, logits))) - logits[target]


def draw_logits(V, scale):
    logits = scale * np.random.default_rng(V).normal(size=V)
    return logits, {"best": logits.argmax(), "worst": logits.argmin(), "last": V - 1}


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("V", [1, 2, 27, 300, 3001])
def test_loss(variant, V, scale):
    logits, targets = draw_logits(V, scale)
    for where, target in targets.items():
        losses = np.full(1, NAN)
        kernels.cross_entropy_forward(logits[None], np.array([target]), losses)
        assert ulps(losses, exact_loss(logits, target), at_least=1.0) <= 4.0, where


def model_loss(variant, logits, target):
    """The model's own loss, a tile of the vocabulary at a time: with D = 1 and an embedding of 1, logits = lm_head."""
    V = logits.size
    params = np.concatenate([np.ones(V), np.zeros(1), logits])
    data = variant.TokenData(np.array([0, target], np.int32), np.array([0, 1]), 1)
    batch = variant.TokenBatch(data)
    batch.take(np.zeros(1, np.int64), 1.0)
    gradient = np.zeros_like(params)
    loop = variant.Loop(variant.Bigram(params, gradient, V, 1, 1), None)
    loss = loop.forward(batch)
    loop.backward()
    return loss, gradient[-V:]


@pytest.fixture(scope="module")
def large():
    """50,257 logits that grow on the whole, so that nearly every tile brings a new largest, and exact losses."""
    with mpmath.workprec(200):
        logits, _ = draw_logits(50257, 2.0)
        logits += np.linspace(0.0, 10.0, logits.size)
        best = int(logits.argmax())
        loss = exact_loss(logits, best)
        return logits, {best: loss, 0: loss + mpmath.mpf(logits[best]) - mpmath.mpf(logits[0])}


def test_loss_of_a_large_vocabulary(variant, large):
    logits, expected = large
    for target, loss in expected.items():
        for given in (logits, logits[::-1].copy()):     # the second time, the largest comes early
            at = int(np.flatnonzero(given == logits[target])[0])
            losses = np.full(1, NAN)
            kernels.cross_entropy_forward(given[None], np.array([at]), losses)
            assert ulps(losses, loss, at_least=1.0) <= 4.0
            assert ulps(model_loss(variant, given, at)[0], loss, at_least=1.0) <= 4.0


def test_a_confident_model_keeps_its_digits(variant):
    """Loss 2e-16 and less, where log(sum) and p - 1 are 0: still to a few ULP of the value itself."""
    for gap in (36.0, 100.0, 700.0):
        logits = np.array([0.0, gap, -1.0])
        exact = [mpmath.exp(-mpmath.mpf(gap)), mpmath.exp(-mpmath.mpf(gap) - 1)]
        total = 1 + sum(exact)
        losses, dlogits = np.full(1, NAN), np.full((1, 3), NAN)
        kernels.cross_entropy_forward(logits[None], np.array([1]), losses)
        loss = kernels.cross_entropy_backward(logits[None], np.array([1]), dlogits)
        assert losses[0] == loss
        assert ulps(loss, mpmath.log1p(sum(exact))) <= 4.0
        assert ulps(dlogits[0], [exact[0] / total, -sum(exact) / total, exact[1] / total]) <= 4.0
        model, gradient = model_loss(variant, logits, 1)
        assert (model, gradient.tolist()) == (loss, dlogits[0].tolist())


def test_exp(variant):
    """exp by way of a softmax of two: dlogits[1] = e / (1 + e) / N with e = exp(-x), and N a power of two."""
    x = np.concatenate([np.linspace(0.0, 708.0, 2000), np.logspace(-17, 0, 48)])
    logits = np.stack([np.zeros_like(x), -x], axis=1)
    dlogits = np.full_like(logits, NAN)
    kernels.cross_entropy_backward(logits, np.zeros(2048, np.int64), dlogits)
    exact = [e / (1 + e) / 2048 for e in (mpmath.exp(-mpmath.mpf(a)) for a in x.tolist())]
    assert ulps(dlogits[:, 1], exact) <= 2.5


def test_exp_vanishes_without_subnormal_numbers(variant):
    x = np.array([708.01, 709.0, 745.0, 746.0, 1000.0, 1e10, 1e300, 1.7e308])
    logits = np.stack([np.zeros_like(x), -x], axis=1)
    dlogits = np.full_like(logits, NAN)
    assert kernels.cross_entropy_backward(logits, np.zeros(8, np.int64), dlogits) == 0.0
    assert not dlogits.any()


@pytest.mark.parametrize("logits, target, loss, probabilities", [
    ([1e308, -1e308], 0, 0.0, [1.0, 0.0]),
    ([1e308, 1e308, -1e308], 1, math.log(2.0), [0.5, 0.5, 0.0]),
    ([-1e308, -1e308], 0, math.log(2.0), [0.5, 0.5]),
    ([1e307, -1e307], 1, 2e307, [1.0, 0.0]),
    ([0.0] * 27, 26, math.log(27.0), [1 / 27] * 27),
    ([-INF, 0.0, 0.0], 1, math.log(2.0), [0.0, 0.5, 0.5]),
    ([-INF, 1e308], 1, 0.0, [0.0, 1.0]),
    ([5e-324, -5e-324], 0, math.log(2.0), [0.5, 0.5]),
])
def test_the_ends_of_the_range(variant, logits, target, loss, probabilities):
    logits, targets = np.array([logits]), np.array([target])
    losses, dlogits = np.full(1, NAN), np.full(logits.shape, NAN)
    kernels.cross_entropy_forward(logits, targets, losses)
    assert losses[0] == pytest.approx(loss, rel=1e-15, abs=0.0)
    assert kernels.cross_entropy_backward(logits, targets, dlogits) == losses[0]
    expected = np.array(probabilities)
    expected[target] -= 1.0
    np.testing.assert_allclose(dlogits[0], expected, rtol=1e-15, atol=0.0)


@pytest.mark.parametrize("V", [2, 130, 2100])
@pytest.mark.parametrize("values, target", [
    ([1e308, -1e308], 1),           # the loss itself is 2e308
    ([-INF, 0.0], 0), ([-INF, -INF], 0), ([-INF, -INF], 1),
    ([INF, 0.0], 0), ([INF, 0.0], 1), ([INF, INF], 0), ([INF, -INF], 1),
    ([NAN, 0.0], 0), ([NAN, 0.0], 1), ([NAN, NAN], 1), ([NAN, INF], 1), ([NAN, -INF], 0),
], ids=str)
def test_what_has_no_finite_loss_raises(variant, values, target, V):
    """The two values at the ends of a row, filled up with the second; no loss comes out finite by mistake."""
    row = np.full(V, values[1])
    row[0] = values[0]
    target = target * (V - 1)
    for given, at in ((row, target), (row[::-1].copy(), V - 1 - target)):
        losses = np.full(1, NAN)
        with pytest.raises(FloatingPointError, match=r"^losses\[0\] = (inf|nan): targets\[0\] = "):
            kernels.cross_entropy_forward(given[None], np.array([at]), losses)
        with pytest.raises(FloatingPointError, match=r"^losses\[0\] = (inf|nan): targets\[0\] = "):
            kernels.cross_entropy_backward(given[None], np.array([at]), np.full((1, V), NAN))
        assert not math.isfinite(losses[0])
        assert not math.isfinite(model_loss(variant, given, at)[0])


def test_the_mean_of_many_losses(variant):
    """The sum is compensated, so the rounding of a mean does not grow with the number of rows."""
    N = 50000
    logits = np.random.default_rng(0).normal(size=(N, 2)) * 3.0
    targets, losses = np.arange(N) % 2, np.empty(N)
    kernels.cross_entropy_forward(logits, targets, losses)
    mean = kernels.cross_entropy_backward(logits, targets, np.empty((N, 2)))
    assert ulps(mean, mpmath.fsum(losses.tolist()) / N) <= 1.5


def test_a_mean_that_overflows_raises(variant):
    logits = np.tile([1.5e308, 0.0], (2, 1))
    with pytest.raises(FloatingPointError, match=r"^the mean of 2 losses is inf; the largest is 1.5e\+308$"):
        kernels.cross_entropy_backward(logits, np.array([1, 1]), np.empty((2, 2)))


# --- the gradient norm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e-160, 1e-320, 1e160, 1e307])
@pytest.mark.parametrize("n", [1, 2, 31, 33, 4096, 4097, 100003])
def test_norm(variant, n, scale):
    """Scaled by what squares would not survive; in subnormal numbers only whole units of 5e-324 are left."""
    x = scale * np.random.default_rng(n).normal(size=n) / math.sqrt(n)
    exact = mpmath.sqrt(mpmath.fsum(mpmath.mpf(a) ** 2 for a in x.tolist()))
    assert ulps(kernels.grad_norm(x), exact) <= 4.0
    assert ulps(reference.grad_norm(x), exact) <= 64.0


def test_norm_is_exact_where_it_can_be(variant):
    for unit in (1.0, 2.0**-1074, 2.0**-1000, 2.0**-545, 2.0**512, 2.0**1020):
        assert kernels.grad_norm(np.array([3.0, 4.0]) * unit) == 5.0 * unit
    assert kernels.grad_norm(np.zeros(100)) == 0.0
    assert kernels.grad_norm(np.full(4, 8e307)) == 1.6e308
    assert kernels.grad_norm(np.full(4, 1e308)) == INF         # the norm itself is 2e308


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("n", [1, 40, 9000])
def test_one_bad_element_shows_in_the_norm(variant, n, bad):
    for i in {0, n // 2, n - 1}:
        for fill in (0.0, 1.0, 1e200, 1e-200):
            x = np.full(n, fill)
            x[i] = bad
            assert not math.isfinite(kernels.grad_norm(x))


# --- the environment ------------------------------------------------------------------------------------------


def test_import_leaves_the_floating_point_environment_alone(variant):
    """A module linked with -ffast-math would flush subnormal numbers to zero, in the whole process."""
    smallest = np.array([sys.float_info.min])
    assert (smallest * 0.5)[0] != 0.0
    assert float(smallest[0]) * 0.5 != 0.0
