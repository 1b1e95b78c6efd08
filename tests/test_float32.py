"""Models, optimisers, files and the command in float32: what has which dtype, what is converted, what is refused."""

import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastloop as fl
from fastloop import _core, checkpoint
from fastloop.reference import BigramStep, GPTStep, MLPStep
from fastloop.train import main

DOCS = fl.load_docs()[:40]
TOK = fl.CharTokenizer(DOCS)
V = TOK.vocab_size
RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(30, 3)), RNG.normal(size=(30, 2))
MODELS = {
    "bigram": (lambda **kw: fl.BigramLM(V, n_embd=6, **kw), (DOCS,)),
    "gpt": (lambda **kw: fl.GPT(V, n_embd=8, n_head=2, **kw), (DOCS,)),
    "mlp": (lambda **kw: fl.MLP([3, 7, 2], "tanh", **kw), (X, Y)),
    "classes": (lambda **kw: fl.MLP([3, 7, 3], loss="cross_entropy", **kw), (X, np.arange(30) % 3)),
    "linear": (lambda **kw: fl.LinearRegression(3, 2, init_std=0.1, **kw), (X, Y)),
    "softmax": (lambda **kw: fl.SoftmaxRegression(3, 3, init_std=0.1, **kw), (X, np.arange(30) % 3)),
}
OPTIMIZERS = {
    "adam": fl.Adam, "adamw": fl.AdamW, "sgd": lambda **kw: fl.SGD(**kw),
    "momentum": lambda **kw: fl.SGD(momentum=0.9, **kw),
}
pytestmark = pytest.mark.filterwarnings("error")


def trainer_of(model, optimizer=None, **options):
    tokenizer = TOK if isinstance(model, fl.models.LanguageModel) else None
    return fl.Trainer(model, optimizer or fl.Adam(lr=0.01), tokenizer=tokenizer, **options)


# --- models

@pytest.mark.parametrize("name", MODELS)
def test_a_float32_model_begins_with_the_float64_draw_rounded(name):
    make, _ = MODELS[name]
    wide, model = make(seed=5), make(seed=5, dtype="float32")
    assert model.dtype == model.params.flat.dtype == model.grads.flat.dtype == np.float32
    assert wide.dtype == np.float64
    assert np.array_equal(model.params.flat, wide.params.flat.astype(np.float32))
    assert model.params.flat.ctypes.data % 64 == 0
    assert ("dtype" in wide.config, model.config["dtype"]) == (False, "float32")
    assert "dtype='float32'" in repr(model)
    again = type(model)(**model.config)
    assert (again.dtype, again.config) == (model.dtype, model.config)


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("f4"), "<f4", "single"])
def test_whatever_numpy_takes_for_float32_is_float32(dtype):
    assert fl.BigramLM(3, dtype=dtype).dtype is np.dtype(np.float32)


@pytest.mark.parametrize("dtype, words", [
    ("float16", "float16 is not offered"), (np.int64, "int64 is not offered"), (">f4", ">f4 is not offered"),
    ("real", "no dtype of NumPy"), (complex, "complex128 is not offered"), (32, "no dtype of NumPy"),
])
def test_another_dtype_is_refused(dtype, words):
    for make, _ in MODELS.values():
        with pytest.raises(TypeError, match=f"float64.* or .*float32.*|{words}") as caught:
            make(dtype=dtype)
        assert words in str(caught.value)
    with pytest.raises(TypeError, match=words):
        fl.BigramLM(3).astype(dtype)


def test_the_dtype_of_a_model_is_fixed():
    with pytest.raises(AttributeError, match="dtype is fixed when a model is made"):
        fl.BigramLM(3).dtype = np.float32


def test_a_standard_deviation_that_float32_cannot_hold_is_refused():
    assert np.isfinite(fl.BigramLM(3, init_std=9e36, dtype="float32").params.flat).all()
    with pytest.raises(ValueError, match="init_std = 1e"):
        fl.BigramLM(3, init_std=1e38, dtype="float32")


@pytest.mark.parametrize("name", MODELS)
def test_astype_makes_a_model_of_the_same_weights(name):
    make, data = MODELS[name]
    model = make()
    trainer = trainer_of(model)
    trainer.fit(*data, steps=5)
    narrow = model.astype("float32")
    assert type(narrow) is type(model)
    assert np.array_equal(narrow.params.flat, model.params.flat.astype(np.float32))
    assert not narrow.grads.flat.any()
    wide = narrow.astype(np.float64)
    assert wide.dtype == np.float64
    assert np.array_equal(wide.params.flat, narrow.params.flat.astype(np.float64))
    assert wide.config == model.config
    loss = trainer_of(wide).evaluate(*data)
    assert trainer_of(narrow).evaluate(*data) == pytest.approx(loss, rel=1e-5)
    if name in ("classes", "softmax"):
        model.classes = ["a", "b", "c"]
        assert narrow.classes.tolist() == [0, 1, 2]
        assert model.astype("float32").classes.tolist() == ["a", "b", "c"]
    narrow.params.flat[:] = 0.0             # it shares nothing
    assert wide.params.flat.any()


def test_astype_refuses_a_weight_beyond_float32_and_names_it():
    model = fl.BigramLM(3, n_embd=2)
    model.params["wpe"][1, 0] = -1e39
    words = r"^wpe\[1, 0\] = -1e\+39 is more than a float32 can be"
    with np.errstate(all="raise"), pytest.raises(ValueError, match=words):
        model.astype("float32")
    model.params["wpe"][1] = np.inf, np.nan     # as they are after a divergence
    with np.errstate(all="raise"):
        assert not np.isfinite(model.astype("float32").params["wpe"][1]).any()


def test_wide_arrays_are_not_narrowed_in_silence():
    params = fl.BigramLM(3, n_embd=2, dtype="float32").params
    before = params.flat.copy()
    with pytest.raises(TypeError, match="wte has dtype float32, got float64"):
        params["wte"] = np.ones((3, 2))
    with pytest.raises(TypeError, match="flat has dtype float32, got float64"):
        params.flat = np.ones(params.flat.size)
    assert np.array_equal(params.flat, before)
    params["wte"] = [[0.1, 0.2]] * 3            # Python's own numbers
    params["lm_head"] = np.ones((3, 2), np.float32)
    assert params["wte"][0, 0] == np.float32(0.1)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_float32_model_gives_is_float32_and_losses_are_float64(name):
    make, data = MODELS[name]
    model = make(dtype="float32")
    trainer = trainer_of(model, clip_norm=1.0)
    history = trainer.fit(*data, steps=4, batch_size=3, validation=data if len(data) > 1 else data[0])
    assert history.loss.dtype == history.norm.dtype == history.lr.dtype == np.float64
    assert {a.dtype for flat in trainer.optimizer.flats.values() for a in flat.values()} == {np.dtype(np.float32)}
    if name in ("bigram", "gpt"):
        assert model.logits([TOK.bos, 1]).dtype == model.probabilities([TOK.bos, 1]).dtype == np.float32
        assert {rows.dtype for rows in model.logits(TOK, DOCS[:3])} == {np.dtype(np.float32)}
        texts = model.generate(TOK, 9, 0.7, seed=2, top_k=9, top_p=0.9)
        assert texts == model.generate(TOK, 20, 0.7, seed=2, top_k=9, top_p=0.9)[:9]
        assert model.generate(TOK, 3, 1e-320, seed=2) == model.generate(TOK, 3, 0.0)
    else:
        assert model.outputs(X).dtype == np.float32
    if name in ("classes", "softmax"):
        p = model.predict_proba(X)
        assert p.dtype == np.float32
        assert abs(p.sum(axis=1) - 1.0).max() < 1e-6


TWINS = {
    "bigram": lambda m: BigramStep(m.params.flat.copy(), V, m.n_embd, m.block_size, N=600),
    "gpt": lambda m: GPTStep(m.params.flat.copy(), V, m.n_embd, m.block_size, m.n_layer, m.n_head),
    "mlp": lambda m: MLPStep(m.params.flat.copy(), m.widths, m.activation, m.loss, N=30),
    "softmax": lambda m: MLPStep(m.params.flat.copy(), m.widths, m.activation, m.loss, N=30),
}


@pytest.mark.parametrize("name", TWINS)
def test_loss_gradient_and_step_are_those_of_the_twin_in_float32(name):
    make, data = MODELS[name]
    model = make(dtype="float32")
    trainer, twin = trainer_of(model, fl.Adam(lr=0.01, betas=(0.85, 0.99))), TWINS[name](model)
    batch = trainer.batch(*data)
    trainer.zero_grad()
    loss = trainer.forward(batch)
    trainer.backward()
    if name in ("bigram", "gpt"):
        arrays = [np.array(a) for a in batch.arrays()]
    else:
        arrays = [X.astype(np.float32), data[1] if name == "softmax" else Y.astype(np.float32)]
    assert twin.forward(*arrays) == pytest.approx(loss, rel=1e-6)
    twin.backward()
    assert twin.grads.dtype == twin.m.dtype == np.float32
    np.testing.assert_allclose(model.grads.flat, twin.grads, rtol=1e-4, atol=1e-6 * abs(twin.grads).max())
    twin.grads[:] = model.grads.flat
    trainer.step()
    twin.step(lr=0.01, beta1=0.85, beta2=0.99)
    np.testing.assert_allclose(model.params.flat, twin.params, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_by_hand_in_fit_copied_pickled_and_resumed_have_the_same_bits(name, optimizer, tmp_path):
    make, data = MODELS[name]

    def new():
        return trainer_of(make(dtype="float32"), OPTIMIZERS[optimizer](lr=0.02, weight_decay=0.1), clip_norm=0.3)

    whole, hand, path = new(), new(), tmp_path / "run.npz"
    n = len(data[0])
    losses = whole.fit(*data, steps=6, batch_size=n).loss
    by_hand, batch = [], hand.batch(*data)
    for _ in range(6):
        hand.zero_grad()
        by_hand.append(hand.forward(batch))
        hand.backward()
        hand.clip_grad_norm()
        hand.step()
    assert by_hand == losses.tolist()
    assert hand.model.params.flat.tobytes() == whole.model.params.flat.tobytes()

    class Save:
        def on_step(self, trainer):
            if trainer.steps == 3:
                trainer.save(path)
                trainer.stop("in the middle")

    half = new()
    half.fit(*data, steps=6, batch_size=n, callbacks=[Save()])
    for other in (fl.Trainer.load(path), copy.deepcopy(half), pickle.loads(pickle.dumps(half)), half):
        assert other.model.dtype == np.float32
        other.resume(*data)
        assert other.model.params.flat.tobytes() == whole.model.params.flat.tobytes()
        assert other.history.loss.tolist() == losses.tolist()


def test_a_diverging_float32_run_stops_before_the_parameters_are_touched():
    for lr, steps in ((1e30, 50), (1e39, 50)):
        trainer = trainer_of(fl.BigramLM(V, dtype="float32"), fl.Adam(lr=lr))
        with pytest.raises(fl.DivergenceError):
            trainer.fit(DOCS, steps=steps)
        assert np.isfinite(trainer.model.params.flat).all()
        assert all(np.isfinite(moments.flat).all() for moments in trainer.optimizer.flats.values())
    model = fl.LinearRegression(1, dtype="float32")
    trainer = fl.Trainer(model, fl.SGD(lr=1.0))
    with pytest.raises(fl.DivergenceError) as caught:       # the loss is finite, the gradient's square is not
        trainer.fit(np.full((4, 1), 1e20), np.full(4, 1e18), steps=3)
    assert math.isfinite(caught.value.loss)
    assert not model.params.flat.any()


# --- data

def test_values_that_float32_cannot_hold_are_refused_with_their_place():
    model = fl.LinearRegression(2, dtype="float32")
    trainer, wide, y = fl.Trainer(model), np.zeros((5, 2)), np.zeros(5)
    wide[3, 1] = 1e39
    with np.errstate(all="raise"):
        with pytest.raises(ValueError, match=r"^X\[3, 1\] = 1e\+39 is more than a float32 can be"):
            trainer.fit(wide, y)
        wide[3, 1], y[4] = 1e-60, -4e38
        with pytest.raises(ValueError, match=r"^y\[4\] = -4e\+38 is more than a float32 can be"):
            trainer.fit(wide, y)
        y[4] = np.nan
        with pytest.raises(ValueError, match=r"^y\[4\] = nan is not finite"):
            trainer.fit(wide, y)
        y[4] = 0.0
        trainer.fit(wide, y, steps=1)
    fl.Trainer(model.astype("float64")).fit([[1e39, 0.0]], [0.0], steps=1)


@pytest.mark.parametrize("move", ["fit", "forward"])
def test_prepared_arrays_of_the_other_precision_are_refused_with_both_named(move):
    narrow, wide = (fl.Trainer(fl.LinearRegression(3, 2, dtype=dtype)) for dtype in ("float32", "float64"))
    data, _ = wide.prepare(X, Y)
    narrow.zero_grad()
    call = (lambda: narrow.fit(data, steps=1)) if move == "fit" else (lambda: narrow.forward(wide.batch(data)))
    with pytest.raises(TypeError, match="X is float64, the model float32"):
        call()
    assert not narrow.model.params.flat.any()


@pytest.mark.parametrize("name", MODELS)
def test_float32_data_and_batches_are_copied_and_pickled_in_float32(name):
    make, data = MODELS[name]
    trainer = trainer_of(make(dtype="float32"))
    trainer.model.params.flat[:] = np.random.default_rng(2).normal(size=trainer.model.num_params)
    prepared, _ = trainer.prepare(*data)
    loss, batch = trainer.evaluate(prepared), trainer.batch(*data)
    assert trainer.evaluate(pickle.loads(pickle.dumps(prepared))) == trainer.evaluate(copy.copy(prepared)) == loss
    trainer.zero_grad()
    first = trainer.forward(batch)
    assert trainer.forward(pickle.loads(pickle.dumps(batch))) == trainer.forward(copy.deepcopy(batch)) == first


# --- optimisers over arrays

@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float32_arrays_and_tensors_are_updated_in_place(name):
    torch = pytest.importorskip("torch", reason="PyTorch's tensors")
    ours = [np.arange(5, dtype=np.float32), np.ones((2, 3), np.float32)]
    theirs = [torch.tensor(a) for a in ours]
    one, two = (OPTIMIZERS[name](params=params, lr=0.1) for params in (ours, theirs))
    for _ in range(3):
        grads = [RNG.normal(size=a.shape).astype(np.float32) for a in ours]
        one.step(grads)
        two.step([torch.tensor(g) for g in grads])
    assert all(np.array_equal(a, t.numpy()) for a, t in zip(ours, theirs, strict=True))
    assert not np.array_equal(ours[1], np.ones((2, 3)))
    for entry in one.state_dict()["state"].values():
        assert {a.dtype for slot, a in entry.items() if slot != "step"} <= {np.dtype(np.float32)}


def test_float32_steps_are_those_of_torch():
    torch = pytest.importorskip("torch", reason="PyTorch's optimisers are the reference")
    for ours, theirs in ((fl.Adam, torch.optim.Adam), (fl.AdamW, torch.optim.AdamW), (fl.SGD, torch.optim.SGD)):
        options = {"lr": 0.01, "weight_decay": 0.1}
        a, t = np.ones(100, np.float32), torch.nn.Parameter(torch.ones(100))
        one, two = ours(params=[a], **options), theirs([t], **options)
        for _ in range(20):
            g = RNG.normal(size=100).astype(np.float32)
            one.step([g])
            t.grad = torch.tensor(g)
            two.step()
        np.testing.assert_allclose(a, t.detach().numpy(), rtol=1e-5, atol=1e-6)
        two.load_state_dict(theirs([t], **options).state_dict())
        state = {i: {k: v for k, v in e.items()} for i, e in one.state_dict()["state"].items()}
        assert all(v.dtype == np.float32 for e in state.values() for k, v in e.items() if k != "step")


def test_two_dtypes_are_refused_with_both_named():
    w32, w64 = np.zeros(3, np.float32), np.zeros(3)
    with pytest.raises(TypeError, match=r"params\[1\] has dtype float64; expected float32, which params\[0\] has"):
        fl.Adam(params=[w32, w64])
    opt = fl.Adam(params=[w32])
    for look in (True, False):
        with pytest.raises(TypeError, match=r"grads\[0\] has dtype float64; expected float32"):
            opt.step([w64], check_finite=look)
    with pytest.raises(TypeError, match=r"grads\[0\] has dtype float32; expected float64"):
        fl.SGD(params=[w64]).step([w32])
    assert not w32.any()
    wide = fl.Adam(params=[w64])
    wide.step([np.ones(3)])
    with pytest.raises(TypeError, match="exp_avg of tensor 0 has dtype float64, which float32 cannot hold"):
        opt.load_state_dict(wide.state_dict())
    trainer = trainer_of(fl.BigramLM(V, n_embd=2))
    trainer.fit(DOCS, steps=1)
    with pytest.raises(TypeError, match="this optimiser holds exp_avg of float64, the model is float32"):
        trainer_of(fl.BigramLM(V, n_embd=2, dtype="float32"), copy.deepcopy(trainer.optimizer))


@pytest.mark.parametrize("options, words", [
    ({"eps": 1e-46}, "eps = 1e-46 is 0.0 in float32"), ({"eps": 1e39}, "eps = 1e[+]39 is inf in float32"),
    ({"betas": (1 - 1e-9, 0.9)}, r"betas\[0\] = 0.999999999 is 1 in float32"),
    ({"betas": (0.9, 1 - 1e-9)}, r"betas\[1\] = 0.999999999 is 1 in float32"),
])
def test_hyperparameters_that_float32_cannot_hold_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        fl.Adam(params=[np.zeros(3, np.float32)], **options)
    with pytest.raises(ValueError, match=words):
        trainer_of(fl.BigramLM(V, dtype="float32"), fl.Adam(**options))
    fl.Adam(params=[np.zeros(3)], **options)


@pytest.mark.parametrize("name", ["weight_decay", "momentum", "dampening"])
def test_a_weight_decay_or_momentum_that_is_infinite_in_float32_is_refused(name):
    options = {name: 1e39}
    with pytest.raises(ValueError, match=rf"{name} = 1e\+39 is infinite in float32"):
        fl.SGD(params=[np.zeros(3, np.float32)], **options)
    fl.SGD(params=[np.zeros(3)], **options)


@pytest.mark.parametrize("lr", [1e-50, 0.0])
def test_a_learning_rate_of_nothing_in_float32_moves_nothing(lr):
    w = np.ones(3, np.float32)
    fl.Adam(params=[w], lr=lr).step([np.ones(3, np.float32)])
    assert w.tolist() == [1.0] * 3


@pytest.mark.parametrize("make", OPTIMIZERS.values())
def test_a_learning_rate_beyond_float32_is_refused_before_anything_is_written(make):
    w = np.ones(3, np.float32)
    opt = make(params=[w], lr=1e39)
    with pytest.raises(fl.DivergenceError):
        opt.step([np.ones(3, np.float32)])
    assert (w.tolist(), opt.t) == ([1.0] * 3, 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_learning_rate_beyond_float32_leaves_no_nan_where_nothing_is_to_move(name):
    """In float32 it is infinite, and infinity times a gradient of 0 is NaN."""
    w = np.ones(3, np.float32)
    opt = OPTIMIZERS[name](params=[w], lr=0.1)
    opt.step([np.zeros(3, np.float32)])
    before, opt.lr = w.copy(), 1e39
    try:
        opt.step([np.zeros(3, np.float32)])
    except fl.DivergenceError:
        assert np.array_equal(w, before)
    assert np.isfinite(w).all()


# --- files

def test_a_checkpoint_of_one_dtype_with_arrays_of_another_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    trainer = trainer_of(fl.BigramLM(V, n_embd=2, dtype="float32"))
    trainer.fit(DOCS, steps=2, validation=DOCS, restore_best=True)
    trainer.save(path)
    arrays, meta = checkpoint.read(path)
    assert meta["model"]["dtype"] == "float32"
    mine = [name for name in arrays if name.startswith(("params/", "exp_avg", "run/best"))]
    assert {arrays[name].dtype for name in mine} == {np.dtype(np.float32)}
    for name in mine:
        checkpoint.write(path, {**arrays, name: arrays[name].astype(np.float64)}, meta)
        with pytest.raises(fl.CheckpointError, match=r"of float64, expected .* of float32"):
            fl.Trainer.load(path)
    narrow = {**meta, "model": {k: v for k, v in meta["model"].items() if k != "dtype"}}
    checkpoint.write(path, arrays, narrow)
    with pytest.raises(fl.CheckpointError, match=r"of float32, expected .* of float64"):
        fl.Trainer.load(path)
    for wrong in ("float16", 3, None):
        checkpoint.write(path, arrays, {**meta, "model": {**meta["model"], "dtype": wrong}})
        with pytest.raises(fl.CheckpointError):
            fl.Trainer.load(path)


def test_safetensors_are_of_the_models_dtype_and_not_converted(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="the extra safetensors is not installed")
    path, narrow, wide = tmp_path / "x.safetensors", *(fl.GPT(V, n_embd=8, dtype=d) for d in ("float32", "float64"))
    narrow.save_safetensors(path, TOK)
    assert {a.dtype for a in numpy.load_file(path).values()} == {np.dtype(np.float32)}
    again = fl.GPT.from_safetensors(path)
    assert again.dtype == np.float32
    assert np.array_equal(again.params.flat, narrow.params.flat)
    before = wide.params.flat.copy()
    with pytest.raises(TypeError, match=r"is float32, the model float64: .*astype\('float64'\)"):
        wide.load_safetensors(path)
    assert np.array_equal(wide.params.flat, before)
    wide.save_safetensors(path)
    with pytest.raises(TypeError, match=r"is float64, the model float32: .*astype\('float32'\)"):
        narrow.load_safetensors(path)
    numpy.save_file({name: a.astype(np.float16) for name, a in wide.params.items()}, path)
    for model in (narrow, wide):
        model.load_safetensors(path)
        assert np.array_equal(model.params["wte"], before[: V * 8].reshape(V, 8).astype(np.float16))


# --- tools

@pytest.mark.parametrize("name", MODELS)
def test_gradcheck_passes_right_float32_gradients_and_leaves_the_model_alone(name):
    make, data = MODELS[name]
    for std in (None, 0.0, 0.5):
        model = make(dtype="float32")
        if std is not None:
            model.params.flat[:] = np.random.default_rng(1).normal(0.0, std, model.num_params)
        before = model.params.flat.tobytes()
        check = fl.gradcheck(model, trainer_of(model).batch(*data), samples=20)
        assert check.ok, check
        assert check.tol == 1e-4
        assert model.params.flat.tobytes() == before
        assert not model.grads.flat.any()


def test_gradcheck_allows_what_rounding_leaves_of_a_gradient_that_cancels():
    model, X = fl.SoftmaxRegression(3, 4, dtype="float32"), np.random.default_rng(0).normal(size=(20, 3))
    check = fl.gradcheck(model, trainer_of(model).batch(X, np.arange(20) % 4))      # as many rows of each class
    assert check.worst["layer0.bias"][1] != 0.0
    assert check.ok, check


def test_gradcheck_finds_a_wrong_float32_gradient():
    from types import SimpleNamespace

    model = fl.BigramLM(V, n_embd=5, dtype="float32")
    batch, grads = trainer_of(model).batch(DOCS), model.grads

    def items():
        wrong = {name: g.copy() for name, g in grads.items()}
        wrong["lm_head"] *= 1.001
        return wrong.items()

    vars(model)["grads"] = SimpleNamespace(flat=grads.flat, items=items)
    assert fl.gradcheck(model, batch).wrong == ["lm_head"]


def test_a_row_whose_moments_have_faded_is_not_called_never_used():
    """In float32 a second moment is gone after a few thousand steps, which does not say that it never was there."""
    trainer = trainer_of(fl.BigramLM(V, dtype="float32"), fl.Adam(lr=1e-3, betas=(0.85, 0.99)))
    trainer.fit(DOCS, steps=200)
    few = [doc for doc in DOCS if not set(doc) & set("zqxj")]
    trainer.fit(few, steps=12_000, batch_size=2)
    assert not trainer.optimizer.flats["exp_avg_sq"]["wte"].any(axis=1).all()
    assert "dead_rows" not in [finding.name for finding in fl.diagnose(trainer)]


def test_lr_find_leaves_a_float32_trainer_as_it_was():
    trainer = trainer_of(fl.GPT(V, n_embd=8, n_head=2, dtype="float32"))
    trainer.fit(DOCS, steps=3)
    before = trainer.model.params.flat.tobytes(), trainer.optimizer.flats["exp_avg"].flat.tobytes()
    found = fl.lr_find(trainer, DOCS, steps=40)
    assert found.losses.dtype == np.float64
    assert (trainer.model.params.flat.tobytes(), trainer.optimizer.flats["exp_avg"].flat.tobytes()) == before


def test_the_command_trains_saves_and_resumes_in_float32(tmp_path, capsys):
    whole, path, config = tmp_path / "whole.npz", tmp_path / "run.npz", tmp_path / "run.toml"
    config.write_text('model = "gpt"\ndtype = "float32"\nsteps = 30\nn-embd = 8\n')
    assert main(["--config", str(config), "--save", str(whole), "--sample", "0"]) == 0
    assert "of float32" in capsys.readouterr().out
    loaded = fl.Trainer.load(whole)
    assert loaded.model.dtype == np.float32
    flags = ["--model", "gpt", "--dtype", "float32", "--steps", "20", "--n-embd", "8", "--schedule", "constant"]
    assert main([*flags, "--save", str(path), "--sample", "0"]) == 0
    assert main(["--resume", str(path), "--steps", "30", "--save", str(path), "--sample", "0"]) == 0
    assert main([*flags, "--steps", "30", "--save", str(whole), "--sample", "0"]) == 0
    one, two = (fl.Trainer.load(p).model.params.flat for p in (whole, path))
    assert one.tobytes() == two.tobytes()
    capsys.readouterr()
    assert main(["--dtype", "float32", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert 'dtype = "float32"' in out
    assert "992 of float32" in out
    with pytest.raises(SystemExit):
        main(["--dtype", "float16"])
    assert "float64" in capsys.readouterr().err


def test_the_float32_engine_is_loaded_only_when_it_is_asked_for():
    code = (
        "import sys, fastloop as fl\n"
        "fl.BigramLM(3)\n"
        "print(any(name.endswith('_float32') for name in sys.modules))\n"
        "fl.BigramLM(3, dtype='float32').make_core()\n"
        "print(any(name.endswith('_float32') for name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert _core.engine(np.dtype(np.float64)) is _core.variant


def test_moments_of_tiny_gradients_are_not_subnormal():
    """Arithmetic on subnormal numbers takes a hundred cycles, and the square of 1e-20 is one in float32."""
    w = np.ones(40, np.float32)
    opt = fl.Adam(params=[w])
    for _ in range(15):
        opt.step([np.full(40, 1e-20, np.float32)])
    assert not opt.state_dict()["state"][0]["exp_avg_sq"].any()
