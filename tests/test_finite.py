"""No step writes NaN or infinity to a parameter or a moment, however large the numbers are.

A step that would is refused before anything has changed.
"""

import hashlib
import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastloop as fl
from fastloop import kernels

many = settings(derandomize=True, deadline=None, max_examples=150, database=None)

DOCS = ["abc", "ca", "b"]
MAX = np.finfo(float).max
both = pytest.mark.parametrize("dtype", ["float64", "float32"])


def sized(x, dtype):
    """x, drawn for float64, or for float32 a number at the same place in its range."""
    if dtype == "float64" or 1e-4 <= abs(x) <= 1e4 or x == 0.0:
        return x
    return math.copysign(float(min(10.0 ** (math.log10(abs(x)) / 8.0), np.finfo(np.float32).max)), x)


def optimizer_for(made, dtype):
    """(class, arguments) for parameters of that dtype."""
    kind, options = made
    options = {k: sized(x, dtype) if isinstance(x, float) else x for k, x in options.items()}
    if dtype == "float32" and "betas" in options:
        options["betas"] = tuple(min(beta, 1.0 - 2.0**-23) for beta in options["betas"])
    return kind, options


def digest(opt, params):
    """A hash of parameters, moments, step count and learning rate; True for finite beside it."""
    moments = [a for slots in opt._state for a in slots.values()]
    arrays = [*params, *moments]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays) + f"{opt.t} {opt.lr}".encode()).hexdigest()


def finite(opt, params):
    moments = [a for slots in opt._state for a in slots.values()]
    return all(np.isfinite(a).all() for a in [*params, *moments])


# Numbers of every size, most near an end of the range or in the middle.
sizes = st.one_of(
    st.floats(-323.0, 308.25), st.floats(290.0, 308.25), st.floats(150.0, 156.0), st.floats(-6.0, 3.0),
).map(lambda power: min(10.0**power, MAX))
signed = st.one_of(st.just(0.0), sizes, sizes.map(lambda x: -x))
moderate = st.one_of(st.just(0.0), st.floats(-4.0, 4.0).map(lambda power: 10.0**power))
# Sizes that training has, beside those that make it fail: mostly one thing is extreme at a time.
factors = st.one_of(moderate, moderate, sizes)
betas = st.one_of(
    st.sampled_from([0.0, 0.5, 0.85, 0.9, 0.99, 0.999, 1.0 - 2.0**-53]), st.floats(0.0, 1.0, exclude_max=True),
)


@st.composite
def optimizers(draw):
    """(class, its arguments)"""
    kind = draw(st.sampled_from([fl.Adam, fl.AdamW, fl.SGD]))
    options = {"lr": draw(factors), "weight_decay": draw(factors)}
    if kind is fl.SGD:
        options["momentum"] = draw(st.one_of(st.just(0.0), st.just(0.9), factors))
        options["nesterov"] = options["momentum"] > 0.0 and draw(st.booleans())
        options["dampening"] = 0.0 if options["nesterov"] else draw(st.one_of(st.just(0.0), factors))
    else:
        options["betas"] = draw(betas), draw(betas)
        options["eps"] = draw(st.one_of(st.just(1e-8), sizes.filter(lambda x: x > 0.0)))
    return kind, options


def sgd_step(grad, param, velocity, t, lr, weight_decay, momentum, dampening, nesterov):
    """csrc/step/sgd.pxi, operation by operation; in place."""
    g = grad + weight_decay * param
    if momentum:
        velocity[:] = momentum * velocity + (1.0 if t == 1 else 1.0 - dampening) * g
        velocity[np.abs(velocity) < (1e-290 if velocity.dtype == float else np.float32(1e-35))] = 0.0
        g = g + momentum * velocity if nesterov else velocity
    param -= lr * g


def unguarded(kind, options, opt, params, grads):
    """The parameters and states after the step, as the kernels write them without the finite check."""
    params = [p.copy() for p in params]
    states = [[a.copy() for a in slots.values()] for slots in opt._state]
    with np.errstate(all="ignore"):
        for p, g, state in zip(params, grads, states, strict=True):
            if kind is fl.SGD:
                sgd_step(g, p, state[0] if state else None, opt.t + 1, **options)
            else:
                kernels.adam_step(g, p, *state, lr=options["lr"], beta1=options["betas"][0], beta2=options["betas"][1],
                                  eps=options["eps"], t=opt.t + 1, weight_decay=options["weight_decay"],
                                  decoupled=opt.decoupled)
    return params, states


@both
@many
@given(optimizers(), st.lists(signed, min_size=3, max_size=3), st.data())
def test_over_arrays_a_step_is_refused_where_and_only_where_it_writes_what_is_not_finite(dtype, made, values, data):
    kind, options = optimizer_for(made, dtype)

    def arrays(values):
        values = np.array([sized(x, dtype) for x in values], dtype)
        return [values[:2].copy(), values[2:].copy()]

    params = arrays(values)
    opt = kind(params=params, **options)
    for _ in range(4):
        grads = data.draw(st.sampled_from([moderate, signed]).flatmap(lambda x: st.lists(x, min_size=3, max_size=3)))
        grads = arrays(grads)
        expected, states = unguarded(kind, options, opt, params, grads)
        norms = map(kernels.grad_norm, grads)
        squares = all(norm * norm <= float(np.finfo(dtype).max) for norm in norms)
        before = digest(opt, params)
        try:
            opt.step(grads)
        except fl.DivergenceError:
            assert digest(opt, params) == before
            assert not squares or not all(np.isfinite(a).all() for a in [*expected, *(a for s in states for a in s)])
        else:
            assert finite(opt, params)
            assert [p.tobytes() for p in params] == [p.tobytes() for p in expected]
            for slots, state in zip(opt._state, states, strict=True):
                assert [a.tobytes() for a in slots.values()] == [a.tobytes() for a in state]


def make(optimizer=None, dtype="float64", **options):
    model = fl.BigramLM(4, n_embd=3, block_size=4, init_std=1.0, dtype=dtype)
    return fl.Trainer(model, optimizer or fl.Adam(), tokenizer=fl.CharTokenizer(["abc"]), **options)


schedules = st.one_of(
    st.just(1.0), st.just(1.0), signed, st.sampled_from([math.nan, math.inf, -math.inf, None, "x", 1j, [], -1e-9]),
)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@many
@given(optimizers(), signed, signed, schedules, st.sampled_from([None, 1.0, 1e170]), st.data())
def test_by_hand_a_step_is_whole_or_changes_nothing(dtype, made, param, grad, factor, clip, data):
    kind, options = optimizer_for(made, dtype)
    param, grad = sized(param, dtype), sized(grad, dtype)
    trainer = make(kind(**options), dtype, schedule=lambda step: factor if step == 2 else 1.0)
    flat, opt = trainer.model.params.flat, trainer.optimizer
    batch = trainer.batch(DOCS)
    for step in range(4):
        before = digest(opt, [flat])
        try:
            trainer.zero_grad()
            trainer.forward(batch)
            trainer.backward()
            if step == 1:
                trainer.model.grads.flat[3] = grad
            if clip:
                trainer.clip_grad_norm(clip)
            if step == 3:
                flat[5], trainer.model.grads.flat[7] = param, sized(data.draw(signed), dtype)   # between clip and step
                before = digest(opt, [flat])
            lr = trainer.step()
            assert 0.0 <= lr < math.inf
        except fl.DivergenceError:
            assert digest(opt, [flat]) == before
            trainer.zero_grad()
        else:
            assert finite(opt, [flat])
        assert trainer.steps == opt.t


@pytest.mark.filterwarnings("ignore::fastloop.FastloopWarning")     # of learning rates of 0
@both
@many
@given(optimizers(), st.one_of(st.just(1.0), signed), schedules, st.sampled_from([None, "clip_norm", "clip_value"]),
       st.one_of(moderate, sizes).filter(lambda x: x > 0.0))
def test_fit_ends_before_the_step_that_would_write_what_is_not_finite(dtype, made, param, factor, clip, limit):
    kind, options = optimizer_for(made, dtype)
    param = sized(param, dtype)
    clip = {clip: limit} if clip else {}
    trainer = make(kind(**options), dtype, schedule=lambda step: factor if step == 3 else 1.0, **clip)
    trainer.model.params.flat[5] = param
    try:
        history = trainer.fit(DOCS, steps=6)
    except fl.DivergenceError as error:
        history = error.history
    assert finite(trainer.optimizer, [trainer.model.params.flat])
    assert trainer.steps == trainer.optimizer.t == len(history)
    assert np.isfinite(history.loss).all()
    assert np.isfinite(history.lr).all()
    assert (history.lr >= 0.0).all()


@pytest.mark.parametrize("bad", [
    math.nan, math.inf, -math.inf, -0.5, None, "0.1", 1j, np.complex128(1.0), [1.0], 1e308,
])
@pytest.mark.parametrize("at", [0, 3])
def test_a_schedule_that_gives_no_learning_rate_ends_the_run_before_that_step(bad, at):
    whole = make(fl.Adam(lr=100.0))
    whole.fit(DOCS, steps=at or 1)
    trainer = make(fl.Adam(lr=100.0), schedule=lambda step: bad if step == at else 1.0)
    before = digest(trainer.optimizer, [trainer.model.params.flat])
    gave = "the learning rate (nan|-?inf|-50.0)" if isinstance(bad, float) else re.escape(repr(bad))
    words = rf"^step {at + 1}: the schedule gave {gave}, expected a finite number"
    with pytest.raises(fl.DivergenceError, match=words) as caught:
        trainer.fit(DOCS, steps=10)
    history = caught.value.history
    assert history is trainer.history
    assert len(history) == trainer.steps == trainer.optimizer.t == at
    assert history.stop_reason == "diverged"
    after = digest(trainer.optimizer, [trainer.model.params.flat])
    assert after == (digest(whole.optimizer, [whole.model.params.flat]) if at else before)
    trainer.zero_grad()
    trainer.forward(trainer.batch(DOCS))
    trainer.backward()
    with pytest.raises(fl.DivergenceError, match=words):
        trainer.step()
    assert digest(trainer.optimizer, [trainer.model.params.flat]) == after


@pytest.mark.parametrize("factor", [
    np.float64(0.5), np.float32(0.5), np.array(0.5), 1, True, Fraction(1, 2), np.int64(2), np.longdouble(0.5),
])
def test_any_real_number_will_do_as_a_factor(factor):
    trainer, twin = make(schedule=lambda step: factor), make(schedule=lambda step: float(factor))
    history, expected = trainer.fit(DOCS, steps=3), twin.fit(DOCS, steps=3)
    np.testing.assert_allclose(history.lr, expected.lr, rtol=1e-7)
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-7)


@pytest.mark.parametrize("value, clip", [(math.nan, 1.0), (math.inf, None), (1e180, None), (1e180, 1e170)])
def test_by_hand_the_gradients_are_checked_after_clipping(value, clip):
    trainer = make()
    trainer.forward(trainer.batch(DOCS))
    trainer.backward()
    if clip == 1.0:
        trainer.clip_grad_norm(clip)
    trainer.model.grads.flat[3] = value
    if clip == 1e170:
        trainer.clip_grad_norm(clip)        # what is left has a square that overflows
    before = digest(trainer.optimizer, [trainer.model.params.flat])
    with pytest.raises(fl.DivergenceError, match=r"^step 1: the gradient norm is (nan|inf|1e\+1[78]0) \(lr 0.001"):
        trainer.step()
    assert digest(trainer.optimizer, [trainer.model.params.flat]) == before
    trainer.model.grads.flat[3] = 0.1
    trainer.step()
    assert trainer.steps == 1


@pytest.mark.parametrize("optimizer, scale", [
    (lambda: fl.SGD(lr=1e308), 1.0), (lambda: fl.Adam(lr=1e308), 1.0),
    (lambda: fl.AdamW(lr=1e200, weight_decay=1e200), 1.0),
    (lambda: fl.SGD(weight_decay=1e200), 1e150), (lambda: fl.Adam(weight_decay=1e100), 1e60),
    (lambda: fl.SGD(momentum=1e300, lr=1e-3), 1.0),
])
def test_settings_too_large_are_refused_with_the_parameters_as_they_were(optimizer, scale):
    params = [np.full(700, scale)]
    opt = optimizer()
    opt = type(opt)(params=params, **{k: v for k, v in opt.config.items() if k != "no_decay"})
    for _ in range(30):
        before = digest(opt, params)
        try:
            opt.step([np.full(700, 10.0 * scale)])
        except fl.DivergenceError:
            break
        assert finite(opt, params)
    with pytest.raises(fl.DivergenceError, match="a parameter or moment would not be finite after the step"):
        opt.step([np.full(700, 10.0 * scale)])
    assert digest(opt, params) == before


@pytest.mark.parametrize("make", [
    lambda p: fl.Adam(params=p, weight_decay=1e100), lambda p: fl.SGD(params=p, weight_decay=1e100, lr=1e-200),
    lambda p: fl.AdamW(params=p, weight_decay=1e100),
])
def test_parameters_are_checked_before_every_step(make):
    """They are the user's, who may have written to them since the last step."""
    params = [np.zeros(9)]
    opt = make(params)
    for _ in range(3):
        opt.step([np.full(9, 1e-120)])
    params[0][4] = 1e308 if opt.decoupled else 1e60 if isinstance(opt, fl.Adam) else 1e300
    before = digest(opt, params)
    with pytest.raises(fl.DivergenceError, match="would not be finite"):
        opt.step([np.full(9, 1e-120)])
    assert digest(opt, params) == before


def test_a_parameter_that_was_not_finite_before_does_not_stop_the_others():
    """A step is refused only where it would make a finite value infinite or NaN."""
    p = np.array([math.nan, 1.0, -math.inf])
    opt = fl.Adam(params=[p])
    for _ in range(3):
        opt.step([np.array([0.0, 1.0, 0.0])])
    assert p[1] == pytest.approx(1.0 - 3e-3)


def test_moments_written_by_hand_are_checked_once_the_step_count_is_set():
    for slot, value in (("exp_avg", 1e307), ("exp_avg_sq", math.inf), ("exp_avg_sq", -1.0), ("exp_avg", math.nan)):
        p = np.ones(4)
        opt = fl.Adam(params=[p], lr=1e3)
        opt.step([np.ones(4)])
        opt._state[0][slot][2] = value
        opt.t = 1
        before = digest(opt, [p])
        with pytest.raises(fl.DivergenceError, match="would not be finite"):
            opt.step([np.ones(4)])
        assert digest(opt, [p]) == before


def test_without_the_finite_check_too_large_a_learning_rate_is_still_refused():
    p = np.ones(4)
    opt = fl.Adam(params=[p], lr=1e308)
    with pytest.raises(fl.DivergenceError, match="would not be finite"):
        opt.step([np.ones(4)], check_finite=False)
    assert (p == 1.0).all()
    assert opt.t == 0
