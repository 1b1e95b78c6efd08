"""gradcheck: passes right gradients, finds wrong ones, picks the method that the loss allows, changes nothing."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fastloop as fl

DOCS = fl.load_docs()[:6]
TOK = fl.CharTokenizer(DOCS)
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
PARAMS = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}


def loss(params):
    """Mean squared error of tanh(X w + b); also for complex numbers."""
    return ((np.tanh(X @ params["w"] + params["b"]) - Y) ** 2).mean()


def gradients(params=PARAMS):
    h = np.tanh(X @ params["w"] + params["b"])
    dz = 2.0 / h.size * (h - Y) * (1.0 - h * h)
    return {"w": X.T @ dz, "b": dz.sum(axis=0)}


def real_loss(params):
    return float(loss(params).real)


# --- fastloop's models

def model_and_batch(name):
    model = {
        "bigram": lambda: fl.BigramLM(TOK.vocab_size, n_embd=5, block_size=6),
        "gpt": lambda: fl.GPT(TOK.vocab_size, n_embd=8, n_head=2, n_layer=2, block_size=6),
        "linear": lambda: fl.LinearRegression(3, 2),
        "softmax": lambda: fl.SoftmaxRegression(3, 4),
        "relu": lambda: fl.MLP([3, 9, 2], activation="relu"),
        "tanh": lambda: fl.MLP([3, 9, 9, 4], activation="tanh", loss="cross_entropy"),
    }[name]()
    if name in ("bigram", "gpt"):
        return model, fl.Trainer(model, tokenizer=TOK).batch(DOCS)
    return model, fl.Trainer(model).batch(X, np.arange(20) % 4 if name in ("softmax", "tanh") else Y)


@pytest.mark.parametrize("name", ["bigram", "gpt", "linear", "softmax", "relu", "tanh"])
def test_the_models_are_right_and_left_as_they_were(name):
    model, batch = model_and_batch(name)
    model.params.flat[:] = np.random.default_rng(1).normal(size=model.num_params) * 0.3
    model.grads.flat[:] = np.arange(model.num_params)
    params = model.params.flat.tobytes()
    check = fl.gradcheck(model, batch)
    assert check.ok, check
    assert check
    assert check.max_error < 1e-7
    assert check.checked == model.num_params
    assert (check.method, check.tol) == ("central differences", 1e-6)
    assert list(check.errors) == list(model.params)
    assert model.params.flat.tobytes() == params
    assert np.array_equal(model.grads.flat, np.arange(model.num_params))


@pytest.mark.parametrize("name", ["lm_head", "wpe"])
@pytest.mark.parametrize("relative", [1.0, 1e-4])
def test_a_model_with_one_wrong_element_is_found(name, relative):
    model, batch = model_and_batch("bigram")
    grads = model.grads

    def items():
        wrong = {key: g.copy() for key, g in grads.items()}
        wrong[name][2, 3] += relative * np.abs(wrong[name]).max()
        return wrong.items()

    vars(model)["grads"] = SimpleNamespace(flat=grads.flat, items=items)
    check = fl.gradcheck(model, batch)
    assert not check.ok
    assert not check
    assert check.wrong == [name]
    assert check.worst[name][0] == (2, 3)
    assert check.errors[name] == pytest.approx(relative, rel=1e-3)
    lines = repr(check).splitlines()
    assert lines[0] == f"gradcheck WRONG in 1 of 3 tensors: {check.checked} elements by central differences, tol 1e-06"
    assert [line[:2] for line in lines[1:]] == ["! " if key == name else "  " for key in ("wte", "wpe", "lm_head")]
    assert " at [2, 3]: analytic " in next(line for line in lines if line[0] == "!")


def test_an_error_on_the_way_leaves_the_model_as_it_was(monkeypatch):
    model, batch = model_and_batch("bigram")
    params = model.params.flat.tobytes()

    def break_down(evaluate, flat, k, formula):
        flat[k] = 1.0
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["fastloop.gradcheck"], "_difference", break_down)
    with pytest.raises(ZeroDivisionError):
        fl.gradcheck(model, batch)
    assert model.params.flat.tobytes() == params


# --- users' own losses

def test_complex_step_is_exact():
    check = fl.gradcheck(loss, PARAMS, gradients())
    assert check.ok
    assert check.method == "complex step"
    assert check.max_error < 1e-13
    assert repr(check).startswith("gradcheck ok: 8 elements by complex step, tol 1e-10\n  w  error ")


@pytest.mark.parametrize("function, relative", [(loss, 1e-9), (real_loss, 1e-5)])
def test_one_wrong_element_is_found(function, relative):
    grads = gradients()
    grads["w"][1, 1] += relative * np.abs(grads["w"]).max()
    check = fl.gradcheck(function, PARAMS, grads)
    assert check.wrong == ["w"]
    assert check.worst["w"][0] == (1, 1)
    assert check.max_error == pytest.approx(relative, rel=1e-2)
    assert fl.gradcheck(function, PARAMS, grads, tol=2 * relative).ok


@pytest.mark.parametrize("function", [
    real_loss,
    lambda params: loss({name: np.asarray(p, np.float64) for name, p in params.items()}),   # NumPy warns, and drops it
    lambda params: math.tanh(params["b"][0]) * 0 + real_loss(params),                       # TypeError
    lambda params: loss({name: p.real for name, p in params.items()}),                      # drops it in silence
    lambda params: loss(params) + 0 * abs(params["w"]).sum() if np.isrealobj(params["w"]) else 1j,   # nonsense
    lambda params: np.array([loss(params)]) if np.iscomplexobj(params["w"]) else loss(params),
], ids=["float", "asarray", "TypeError", "real", "nonsense", "array"])
def test_a_loss_for_real_numbers_goes_by_differences(function):
    check = fl.gradcheck(function, PARAMS, gradients())
    assert check.ok, check
    assert check.method == "central differences"
    assert check.max_error < 1e-8


def test_a_loss_that_is_complex_in_part_goes_by_differences():
    """abs has no complex derivative: by complex step its part would be missing."""
    def penalised(params):
        return loss(params) + 1e-4 * np.abs(params["w"]).sum()

    grads = gradients()
    grads["w"] += 1e-4 * np.sign(PARAMS["w"])
    check = fl.gradcheck(penalised, PARAMS, grads)
    assert check.ok, check
    assert check.method == "central differences"


def test_maximum_goes_by_complex_step():
    w = rng.normal(size=5)
    check = fl.gradcheck(lambda w: np.maximum(w, 0.0).sum(), w, (w > 0.0).astype(float))
    assert (check.ok, check.method, check.max_error) == (True, "complex step", 0.0)


@pytest.mark.parametrize("w", [1e-7, -1e-7, 3e-6, -3e-6, 1e-300])
def test_a_kink_nearby_is_no_error(w):
    def relu(w):
        return float(np.maximum(w, 0.0).sum())

    w = np.array([w, 1.0, -1.0])
    slope = (w > 0.0).astype(float)
    assert fl.gradcheck(relu, w, slope).ok
    slope[0] = 1.0 - slope[0] + 1e-3
    assert not fl.gradcheck(relu, w, slope).ok


@pytest.mark.parametrize("params, grads, name", [
    (np.array([1.0, 2.0]), np.array([2.0, 4.0]), "params"),
    ([np.array([1.0, 2.0]), np.array(3.0)], [np.array([2.0, 4.0]), 6.0], "params[1]"),
    ((np.array([1.0, 2.0]), 3.0), [np.array([2.0, 4.0]), np.float64(6.0)], "params[1]"),
    ({"a": np.array([1.0, 2.0]), 7: np.array([[3.0]])}, {7: np.array([[6.0]]), "a": np.array([2.0, 4.0])}, "7"),
    ([np.ones((3, 2)).T, np.empty((0, 4))], [np.full((2, 3), 2.0), np.empty((0, 4))], "params[0]"),
])
@pytest.mark.parametrize("number", [lambda x: x, float])
def test_params_keep_their_form_and_are_copies(params, grads, name, number):
    def squares(given):
        assert type(given) is type(params)
        leaves = [given] if isinstance(given, np.ndarray) else given
        leaves = list(leaves.values()) if isinstance(leaves, dict) else leaves
        total = number(sum((leaf * leaf).sum() for leaf in leaves))
        for leaf in leaves:
            leaf[...] = 1e9
        return total

    check = fl.gradcheck(squares, params, grads)
    assert check.ok, check
    assert check.method == ("central differences" if number is float else "complex step")
    assert name in check.errors


def test_samples():
    seen = []

    def record(w):
        seen.append(np.flatnonzero(w.imag))
        return (w * w).sum()

    w = np.arange(1.0, 101.0)
    check = fl.gradcheck(record, w, 2 * w, samples=10, seed=3)
    assert check.ok
    assert check.checked == 10
    places = [int(hit[0]) for hit in seen if len(hit) == 1]
    assert len(set(places)) == 10
    again, seen = seen, []
    fl.gradcheck(record, w, 2 * w, samples=10, seed=3)
    assert [hit.tolist() for hit in seen] == [hit.tolist() for hit in again]
    assert fl.gradcheck(record, w, 2 * w, samples=1000).checked == 100


def test_zero_gradients():
    zeros = np.zeros(3)
    check = fl.gradcheck(lambda w: 0.0 * w.sum(), np.ones(3), zeros)
    assert (check.ok, check.max_error) == (True, 0.0)
    check = fl.gradcheck(lambda w: 0.0 * w.sum(), np.ones(3), zeros + 1e-300)
    assert (check.ok, check.max_error) == (False, math.inf)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("function", [loss, real_loss])
def test_what_is_not_a_number_is_wrong(bad, function):
    grads = gradients()
    grads["b"][1] = bad
    check = fl.gradcheck(function, PARAMS, grads)
    assert check.wrong == ["b"]
    assert check.errors["b"] == math.inf
    assert check.worst["b"][0] == (1,)
    check = fl.gradcheck(lambda params: function(params) * 0.0 + bad, PARAMS, gradients())
    assert check.wrong == ["w", "b"]


@pytest.mark.parametrize("arguments, options, error, words", [
    ((3.0, PARAMS, PARAMS), {}, TypeError, "a model or a loss function is needed, got 3.0"),
    ((loss, PARAMS), {}, TypeError, "the gradients to check are missing"),
    ((loss, PARAMS, {"w": PARAMS["w"]}), {}, ValueError, "grads hold w; params hold w, b"),
    ((loss, [PARAMS["b"]], PARAMS["b"]), {}, ValueError, r"grads hold params; params hold params\[0\]"),
    ((loss, PARAMS, {**PARAMS, "b": np.zeros(3)}), {}, ValueError, r"the gradient of b has shape \(3,\), b \(2,\)"),
    ((loss, {**PARAMS, "b": np.zeros(2, np.float32)}, PARAMS), {}, TypeError, "b has dtype float32; expected float64"),
    ((loss, PARAMS, {**PARAMS, "b": [1, 2]}), {}, TypeError, "the gradient of b has dtype int64; expected float64"),
    ((lambda params: params["b"], PARAMS, PARAMS), {}, ValueError, r"loss returned an array of shape \(2,\)"),
    ((loss, [], []), {}, ValueError, "params hold no element to check"),
    ((loss, PARAMS, PARAMS), {"tol": -1.0}, ValueError, "tol = -1.0 is outside"),
    ((loss, PARAMS, PARAMS), {"samples": 0}, ValueError, "samples = 0 must be an int of at least 1"),
    ((loss, PARAMS, PARAMS), {"samples": 2.5}, TypeError, "samples = 2.5 must be an int"),
])
def test_wrong_arguments(arguments, options, error, words):
    with pytest.raises(error, match=words):
        fl.gradcheck(*arguments, **options)


def test_wrong_arguments_for_a_model():
    model, batch = model_and_batch("bigram")
    with pytest.raises(TypeError, match=r"batch is a list; expected what trainer.batch\(...\) makes"):
        fl.gradcheck(model, DOCS)
    with pytest.raises(TypeError, match="one of fastloop's models computes its gradients itself"):
        fl.gradcheck(model, batch, model.grads)


def test_an_error_of_the_loss_is_the_users():
    def broken(params):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fl.gradcheck(broken, PARAMS, gradients())
