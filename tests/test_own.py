"""Models of the user's own under the Trainer: subclasses of fl.Model, and functions."""

import copy
import math
import os
import pickle
import signal
import threading
import time
import traceback

import numpy as np
import pytest

import fastloop as fl

RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(30, 3)), RNG.normal(size=(30, 2))
pytestmark = pytest.mark.filterwarnings("error")


class Net(fl.Model):
    """Linear regression: what fl.LinearRegression(3, 2, init_std=0.5) computes."""

    config_names = ("note",)

    def __init__(self, dtype="float64", note="a"):
        self.note = note
        super().__init__({"layer0.weight": (2, 3), "layer0.bias": (2,)}, 42, 0.5, dtype, {"layer0.bias": 0.0})
        self.calls = 0

    def forward(self, X, y, weights):
        self.calls += 1
        self.X, self.d = X, X @ self.params["layer0.weight"].T + self.params["layer0.bias"] - y
        self.weights = weights
        return weights @ (self.d**2).mean(axis=1)

    def backward(self):
        d = self.d * self.weights[:, None]
        self.grads["layer0.weight"] += d.T @ self.X
        self.grads["layer0.bias"] += d.sum(axis=0)


def value_and_grad(params, X, y, weights):
    d = X @ params["layer0.weight"].T + params["layer0.bias"] - y
    e = d * weights[:, None]
    grads = {"layer0.weight": e.T @ X, "layer0.bias": e.sum(axis=0)}
    return weights @ (d**2).mean(axis=1), {name: g.astype(params[name].dtype) for name, g in grads.items()}


def function(dtype="float64"):
    return fl.FunctionModel(dict(Net(dtype).params), value_and_grad)


MODELS = {"class": Net, "function": function}
OPTIMIZERS = {
    "adam": lambda: fl.Adam(lr=0.02), "adamw": lambda: fl.AdamW(lr=0.02, weight_decay=0.1),
    "momentum": lambda: fl.SGD(lr=0.02, momentum=0.9),
}


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


def trained(trainer, **options):
    return trainer.fit(X, Y, **{"steps": 12, "batch_size": 7, "shuffle": True, **options})


def bits(trainer):
    return [trainer.model.params.flat.tobytes(), *(p.flat.tobytes() for p in trainer.optimizer.flats.values())]


# --- the same as a compiled model

@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("options", [
    {}, {"clip_norm": 0.3}, {"clip_value": 0.05}, {"grad_accum": 3}, {"schedule": fl.schedules.cosine()},
], ids=str)
def test_it_trains_as_the_compiled_model_of_the_same_formula(make, optimizer, options, dtype):
    own = fl.Trainer(make(dtype), OPTIMIZERS[optimizer](), **options)
    compiled = fl.Trainer(fl.LinearRegression(3, 2, init_std=0.5, dtype=dtype), OPTIMIZERS[optimizer](), **options)
    compiled.model.params.flat[:] = own.model.params.flat
    got, wanted = (trained(t, validation=(X, Y), eval_every=5) for t in (own, compiled))
    rtol = {"d": 1e-11, "f": 1e-4}[dtype.char]
    np.testing.assert_allclose(got.loss, wanted.loss, rtol=rtol)
    np.testing.assert_allclose(own.model.params.flat, compiled.model.params.flat, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(np.array(got.evaluations), np.array(wanted.evaluations), rtol=rtol)
    assert own.evaluate(X, Y) == pytest.approx(compiled.evaluate(X, Y), rel=rtol)


def test_by_hand_in_fit_copied_pickled_and_resumed_have_the_same_bits(make, dtype, tmp_path):
    def new():
        return fl.Trainer(make(dtype), fl.Adam(lr=0.02), clip_norm=0.3, grad_accum=2)

    whole, hand = new(), new()
    losses = whole.fit(X, Y, steps=6, batch_size=15).loss
    by_hand = []
    for _ in range(6):
        hand.zero_grad()
        total = 0.0
        for half in (slice(0, 15), slice(15, 30)):
            total += hand.forward(hand.batch(X[half], Y[half])) / 2
            hand.backward()
        by_hand.append(total)
        hand.clip_grad_norm()
        hand.step()
    assert by_hand == losses.tolist()
    assert bits(hand) == bits(whole)

    class Save:
        def on_step(self, trainer):
            if trainer.steps == 3:
                trainer.save(tmp_path / "run.npz")
                trainer.stop("in the middle")

    half = new()
    half.fit(X, Y, steps=6, batch_size=15, callbacks=[Save()])
    loaded = fl.Trainer.load(tmp_path / "run.npz", model=make(dtype))
    for other in (loaded, copy.deepcopy(half), pickle.loads(pickle.dumps(half)), half):
        other.resume(X, Y)
        assert bits(other) == bits(whole)
        assert other.history.loss.tolist() == losses.tolist()


def test_it_has_the_same_bits_at_any_number_of_threads(make, many_threads):
    found = set()
    for n in (1, 2, 3):
        fl.set_num_threads(n)
        trainer = fl.Trainer(make())
        trained(trainer)
        found.add(trainer.model.params.flat.tobytes())
    assert len(found) == 1


def test_epochs_patience_restoring_and_a_share_for_validation(make):
    trainer = fl.Trainer(make(), fl.Adam(lr=0.1))
    history = trainer.fit(X, Y, epochs=200, batch_size=8, validation=0.3, patience=3, restore_best=True)
    assert history.stop_reason == "patience"
    (_, held) = trainer.model.hold_out(X, Y, 0.3, 0)
    assert trainer.evaluate(held) == trainer.best_loss


def test_the_tools_work_with_it(make, tmp_path, dtype):
    trainer = fl.Trainer(make(dtype), fl.Adam(lr=1e-3))
    assert fl.gradcheck(trainer.model, trainer.batch(X, Y)).ok
    before = trainer.model.params.flat.copy()
    found = fl.lr_find(trainer, (X, Y), steps=30)
    assert found.losses.size
    assert np.array_equal(trainer.model.params.flat, before)
    trained(trainer, steps=200)
    assert isinstance(fl.diagnose(trainer), list)
    wide = trainer.model.astype("float64")
    assert type(wide) is type(trainer.model)
    assert fl.Trainer(wide).evaluate(X, Y) == pytest.approx(trainer.evaluate(X, Y), rel=1e-5)


def test_gradcheck_finds_a_wrong_gradient(dtype):
    class Wrong(Net):
        def backward(self):
            super().backward()
            self.grads["layer0.bias"] *= 1.001

    model = Wrong(dtype)
    assert fl.gradcheck(model, fl.Trainer(model).batch(X, Y)).wrong == ["layer0.bias"]


def test_safetensors_hold_it(make, tmp_path):
    pytest.importorskip("safetensors", reason="the extra safetensors is not installed")
    model, other = make(), make()
    other.params.flat[:] = 0.0
    model.save_safetensors(tmp_path / "x.safetensors")
    other.load_safetensors(tmp_path / "x.safetensors")
    assert np.array_equal(other.params.flat, model.params.flat)


# --- data

class Seen(fl.Model):
    """Keeps what its forward is given."""

    def __init__(self):
        super().__init__({"w": (1,)}, init_std=0.0)
        self.seen = []

    def forward(self, X, y, weights):
        self.seen.append((X, y, weights))
        return 0.0

    def backward(self):
        pass


@pytest.mark.parametrize("data, y", [
    (X, None), (X, Y), (X[:, 0], Y), (X.tolist(), None), ((X, Y[:, 0]), Y), ((X,), None), ((X, Y, X[:, 0]), None),
    (((X, Y), None), None), ((X, Y), None), (np.arange(30), np.array([f"t{i}" for i in range(30)])),
    (np.zeros((30, 0)), None), (np.zeros((30, 2, 3, 1), np.uint8), np.arange(0, 30).astype("M8[D]")),
    (np.asfortranarray(X), X[::-1]), (X.astype("f2"), X.astype(bool)),
], ids=lambda value: type(value).__name__)
def test_whatever_has_rows_comes_in_batches(data, y):
    model = Seen()
    trainer = fl.Trainer(model, fl.SGD(lr=0.1))
    trainer.fit(data, y, steps=3, batch_size=12)
    if y is None and isinstance(data, tuple) and len(data) == 2:
        data, y = data
    for i, (got_X, got_y, weights) in enumerate(model.seen):
        rows = np.arange(12 * i, 12 * i + 12) % 30
        assert isinstance(got_X, tuple) == isinstance(data, tuple)
        given = data if isinstance(data, tuple) else (data,)
        for got, array in zip(got_X if isinstance(got_X, tuple) else (got_X,), map(np.asarray, given), strict=True):
            assert got.dtype == array.dtype
            assert np.array_equal(got, array[rows])
        assert got_y is None if y is None else np.array_equal(got_y, np.asarray(y)[rows])
        assert weights.tolist() == [1 / 12] * 12
    assert model.seen[0][0] is not model.seen[1][0]     # they may be kept
    prepared, _ = trainer.prepare(data, y)
    twin = pickle.loads(pickle.dumps(prepared))
    assert twin.fingerprint() == copy.copy(prepared).fingerprint() == prepared.fingerprint()


def test_a_run_is_resumed_with_its_own_data_alone():
    trainer = fl.Trainer(Net())
    trained(trainer)
    other = X.copy()
    other[3, 1] += 1e-9
    for data in ((other, Y), (X, Y + 1.0), ((X,), Y), (X.astype("f4"), Y)):
        with pytest.raises(fl.CheckpointError, match="not the data that the run began with"):
            trainer.resume(*data)
    assert trainer.resume(X, Y) is trainer.history


def test_the_weights_add_up_to_one_over_the_rows_of_a_step_and_of_an_evaluation():
    model = Seen()
    trainer = fl.Trainer(model, fl.SGD(lr=0.1), grad_accum=2)
    trainer.fit(X, epochs=1, batch_size=8)
    rows = [len(weights) for _, _, weights in model.seen]
    assert rows == [8, 8, 8, 6]
    totals = [weights.sum() for _, _, weights in model.seen]
    assert [totals[0] + totals[1], totals[2] + totals[3]] == pytest.approx([1.0, 1.0])
    model.seen.clear()
    trainer.evaluate(np.zeros(1500))
    assert [weights.sum() for _, _, weights in model.seen] == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="read-only"):
        model.seen[0][2][:] = 0.0


def test_evaluate_gives_the_mean_over_all_rows():
    class Mean(Seen):
        def forward(self, X, y, weights):
            return X.mean()

    values = RNG.normal(size=1500)
    assert fl.Trainer(Mean()).evaluate(values) == pytest.approx(values.mean())


def test_what_is_done_to_the_data_afterwards_changes_nothing():
    mine, model = X.copy(), Seen()
    data, _ = fl.Trainer(model).prepare(mine)
    mine[:] = 0.0
    fl.Trainer(model).fit(data, steps=1, batch_size=30)
    assert np.array_equal(model.seen[0][0], X)


@pytest.mark.parametrize("data, y, error, words", [
    (X, Y[:29], ValueError, "the same number of rows, got {'X': 30, 'y': 29}"),
    ((X, Y[:3], X), None, ValueError, "{'X[0]': 30, 'X[1]': 3, 'X[2]': 30}"),
    (X[:0], None, ValueError, r"X has shape (0, 3), expected at least one row"),
    (3.0, None, ValueError, "X has shape (), expected at least one row"),
    (np.array([object()] * 3), None, TypeError, "X has dtype object, expected numbers: X[0] = <object"),
    (X, [[1], [2, 3]], ValueError, "y cannot be read as an array"),
    ((), None, ValueError, "the same number of rows, got {}"),
])
def test_data_that_have_no_rows_are_refused(data, y, error, words):
    with pytest.raises(error) as caught:
        fl.Trainer(Seen()).fit(data, y, steps=1)
    assert words in str(caught.value)


# --- errors of the user's

class Trouble(Exception):
    pass


class Fails(Net):
    """Raises `error` when its forward or backward is called the `at`-th time."""

    def __init__(self, where, at, error=Trouble, dtype="float64"):
        super().__init__(dtype)
        self.where, self.at, self.error, self.count = where, at, error, 0

    def maybe(self, where):
        self.count += self.where == where
        if self.where == where and self.count == self.at:
            self.grads.flat[:] += 1.0
            raise self.error("in the user's code")

    def forward(self, *batch):
        self.maybe("forward")
        return super().forward(*batch)

    def backward(self):
        self.maybe("backward")
        super().backward()


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("error", [Trouble, TypeError, ValueError, KeyboardInterrupt, SystemExit, fl.OrderError])
def test_an_exception_ends_the_step_with_the_parameters_as_they_were(where, error):
    trainer, good = fl.Trainer(Fails(where, 4, error), grad_accum=2), fl.Trainer(Net(), grad_accum=2)
    with pytest.raises(error, match="in the user's code") as caught:
        trained(trainer)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-2:] == [where, "maybe"]
    trained(good, steps=1)
    assert trainer.steps == len(trainer.history) == 1
    assert bits(trainer) == bits(good)
    assert not trainer.model.grads.flat.any()
    trainer.resume(X, Y)
    again = fl.Trainer(Net(), grad_accum=2)
    trained(again)
    assert bits(trainer) == bits(again)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("error", [Trouble, TypeError])
def test_an_exception_in_a_move_by_hand_goes_through(where, error):
    trainer = fl.Trainer(Fails(where, 1, error))
    batch = trainer.batch(X, Y)

    def pass_over():
        trainer.forward(batch)
        trainer.backward()

    with pytest.raises(error, match=r"^in the user's code$"):
        pass_over()
    with pytest.raises(fl.OrderError):
        trainer.step()
    assert where == "forward" or not trainer.model.grads.flat.any()
    trainer.zero_grad()
    trainer.forward(batch)
    trainer.backward()
    trainer.step()
    good = fl.Trainer(Net())
    good.forward(good.batch(X, Y))
    good.backward()
    good.step()
    assert bits(trainer) == bits(good)


def test_an_exception_in_an_evaluation_goes_through(make):
    trainer = fl.Trainer(Fails("forward", 3))
    with pytest.raises(Trouble):
        trained(trainer, validation=(X, Y), eval_every=2)
    assert trainer.steps == 2


@pytest.mark.parametrize("loss, words", [
    (None, "forward returned None of type NoneType, expected the loss, one number"),
    ("1.0x", "forward returned '1.0x' of type str"),
    (1j, "forward returned 1j of type complex"),
    (np.zeros(3), r"forward returned an array of shape (3,), expected the loss, one number"),
    (np.zeros(1), r"forward returned an array of shape (1,)"),
])
def test_what_is_no_loss_is_refused(loss, words):
    class Odd(Seen):
        def forward(self, *batch):
            return loss

    trainer = fl.Trainer(Odd())
    with pytest.raises((TypeError, ValueError)) as caught:
        trainer.fit(X, steps=1)
    assert words in str(caught.value)
    assert trainer.steps == 0


@pytest.mark.parametrize("loss", [1, 0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), True])
def test_whatever_is_one_number_is_a_loss(loss):
    class Number(Seen):
        def forward(self, *batch):
            return loss

    assert fl.Trainer(Number()).fit(X, steps=1).loss.tolist() == [float(loss)]


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_caught_before_a_parameter_changes(where, bad):
    class Diverges(Net):
        def forward(self, *batch):
            loss = super().forward(*batch)
            return bad if where == "loss" and self.calls > 3 else loss

        def backward(self):
            super().backward()
            if where == "gradient" and self.calls > 3:
                self.grads["layer0.bias"][1] = bad

    trainer, good = fl.Trainer(Diverges()), fl.Trainer(Net())
    with pytest.raises(fl.DivergenceError) as caught:
        trained(trainer)
    trained(good, steps=3)
    assert caught.value.step == trainer.steps == 3
    assert bits(trainer) == bits(good)


def test_ctrl_c_ends_a_fit_of_slow_steps_after_a_whole_one():
    class Slow(Net):
        def forward(self, *batch):
            time.sleep(0.01)
            return super().forward(*batch)

    trainer = fl.Trainer(Slow())
    sent = []

    def send():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.15, send)
    timer.start()
    history = trained(trainer, steps=100_000)
    assert time.perf_counter() - sent[0] < 5.0
    assert history.interrupted
    assert len(history) == trainer.steps > 0


# --- order, names, classes

def test_a_forward_between_forward_and_backward_is_noticed(make):
    trainer = fl.Trainer(make())
    trainer.forward(trainer.batch(X, Y))
    trainer.evaluate(X, Y)
    with pytest.raises(fl.OrderError, match="forward has been called since, as by evaluate"):
        trainer.backward()
    trainer.zero_grad()
    trainer.forward(trainer.batch(X, Y))
    trainer.backward()
    trainer.step()


def test_a_call_of_the_trainer_from_within_a_pass_is_refused():
    class Nested(Net):
        def forward(self, *batch):
            trainer.zero_grad()

    trainer = fl.Trainer(Nested())
    with pytest.raises(fl.OrderError):
        trained(trainer)
    assert trainer.steps == 0


@pytest.mark.parametrize("make, error, words", [
    (lambda: fl.Model({"w": (2,)}), TypeError, "Model has no method forward(X, y, weights)"),
    (lambda: type("Half", (fl.Model,), {"forward": lambda *_: 0.0})({"w": (2,)}), TypeError,
     "Half has no method backward()"),
    (lambda: type("Empty", (fl.Model,), {"__init__": lambda self: None})(), TypeError,
     "Empty.__init__ must call super().__init__(shapes, ...)"),
    (lambda: fl.Model({}), TypeError, "shapes = {} must be a dict of name -> shape"),
    (lambda: fl.Model([("w", (2,))]), TypeError, "must be a dict of name -> shape"),
    (lambda: fl.Model({"w": 2}), TypeError, "shapes['w'] = 2: expected a str and a tuple of sizes"),
    (lambda: fl.Model({"w": (2, -1)}), ValueError, "shapes['w'][1] = -1"),
    (lambda: fl.Model({"w": (2,)}, dtype="float16"), TypeError, "float16 is not offered"),
    (lambda: fl.FunctionModel({"w": np.zeros(2)}, 3), TypeError, "value_and_grad = 3 must be a function"),
    (lambda: fl.FunctionModel([np.zeros(2)], len), TypeError, "must be a dict of name -> array"),
    (lambda: fl.FunctionModel({"w": np.zeros(2, "f4"), "b": np.zeros(2)}, len), TypeError, "w float32, b float64"),
    (lambda: fl.FunctionModel({"w": [1, 2]}, len), TypeError, "int64 is not offered"),
    (lambda: fl.FunctionModel({}, len), TypeError, "shapes = {}"),
])
def test_what_is_no_model_is_refused(make, error, words):
    with pytest.raises(error) as caught:
        fl.Trainer(make())
    assert words in str(caught.value)


def test_names_that_a_model_has_already_are_refused_and_others_are_free():
    model = Seen()
    for name in ("config", "num_params", "params", "grads", "dtype"):
        with pytest.raises(AttributeError, match=name):
            setattr(model, name, 3)
    for name in ("classes", "shapes", "layers", "X"):
        setattr(model, name, 3)
    fl.Trainer(model).fit(X, steps=1)


@pytest.mark.parametrize("returned, words", [
    (3.0, "value_and_grad returned 3.0, expected a tuple"),
    ((1.0, [np.zeros(2)]), "expected a tuple: loss, dict of gradients"),
    ((1.0, {"w": np.zeros(2)}), "gave gradients of ['w'], the parameters are ['w', 'b']"),
    ((1.0, {"w": np.zeros(2), "b": np.zeros(1)}), "the gradient of b has shape (1,) of float64, the parameter () of"),
    ((1.0, {"w": np.zeros(2, "f4"), "b": np.zeros(())}), "the gradient of w has shape (2,) of float32"),
])
def test_what_a_function_must_not_return(returned, words):
    trainer = fl.Trainer(fl.FunctionModel({"w": np.zeros(2), "b": np.zeros(())}, lambda *_: returned))
    with pytest.raises((TypeError, ValueError)) as caught:
        trainer.fit(X, steps=1)
    assert words in str(caught.value)
    assert trainer.steps == 0


# --- checkpoints

def test_a_checkpoint_of_another_model_is_refused_and_the_given_one_left_alone(make, tmp_path):
    path = tmp_path / "run.npz"
    trainer = fl.Trainer(make())
    trained(trainer)
    trainer.save(path)
    name = type(trainer.model).__name__
    with pytest.raises(fl.CheckpointError, match=rf"its model is a {name}, a class of your own: pass model={name}"):
        fl.Trainer.load(path)
    others = [Seen(), fl.LinearRegression(3, 2), 3, make("float32")]
    if make is Net:
        others += [Net(note="b")]
    for other in others:
        before = other.params.flat.copy() if isinstance(other, fl.Model) else None
        with pytest.raises(fl.CheckpointError):
            fl.Trainer.load(path, model=other)
        assert before is None or np.array_equal(other.params.flat, before)
    short = fl.FunctionModel({"layer0.weight": np.zeros((2, 3))}, value_and_grad)
    with pytest.raises(fl.CheckpointError):
        fl.Trainer.load(path, model=short)
    mine = make()
    loaded = fl.Trainer.load(path, model=mine)
    assert loaded.model is mine
    assert bits(loaded) == bits(trainer)


def test_a_subclass_of_a_compiled_model_is_loaded_into_one_of_its_class(tmp_path):
    class Mine(fl.LinearRegression):
        pass

    trainer = fl.Trainer(Mine(3, 2))
    trained(trainer)
    trainer.save(tmp_path / "run.npz")
    with pytest.raises(fl.CheckpointError, match=r"pass model=Mine"):
        fl.Trainer.load(tmp_path / "run.npz")
    assert bits(fl.Trainer.load(tmp_path / "run.npz", model=Mine(3, 2))) == bits(trainer)
    with pytest.raises(fl.CheckpointError, match=r"n_in=3, n_out=2\), the given one Mine\(n_in=3, n_out=1\)"):
        fl.Trainer.load(tmp_path / "run.npz", model=Mine(3))


def test_a_compiled_model_may_be_given_too(tmp_path):
    trainer, mine = fl.Trainer(fl.LinearRegression(3, 2)), fl.LinearRegression(3, 2)
    trained(trainer)
    trainer.save(tmp_path / "run.npz")
    assert fl.Trainer.load(tmp_path / "run.npz", model=mine).model is mine
    assert np.array_equal(mine.params.flat, trainer.model.params.flat)
