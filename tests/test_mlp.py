"""LinearRegression, SoftmaxRegression and MLP: worked examples, gradients, trajectories, equal bits, refusals."""

import numpy as np
import pytest

import fastloop as fl
from fastloop import reference

RNG = np.random.default_rng(0)
WIDTHS = [[3, 2], [1, 2], [5, 45, 3], [46, 45, 46, 5], [2, 16, 16, 8, 2], [9, 7, 1, 8, 17]]


def arrays(model, n, seed=1):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, model.widths[0]))
    if model.loss == "cross_entropy":
        return X, rng.integers(model.widths[-1], size=n)
    return X, rng.normal(size=(n, model.widths[-1]))


def twin(model, n, dtype=float):
    return reference.MLPStep(model.params.flat.astype(dtype), model.widths, model.activation, model.loss, n)


def gradient(model, X, y):
    trainer = fl.Trainer(model)
    trainer.zero_grad()
    loss = trainer.forward(trainer.batch(X, y))
    trainer.backward()
    return loss, model.grads.flat.copy()


# The courses' numbers


def test_mean_squared_error_worked():
    model = fl.LinearRegression(1)
    model.params["layer0.weight"] = [[1.0]]
    assert fl.Trainer(model).evaluate([2.5, 3.5, 6.2], [2, 4, 6]) == pytest.approx(0.18, abs=1e-15)


@pytest.mark.parametrize("target, loss", [(0, 0.42), (2, 2.32)])
def test_cross_entropy_worked(target, loss):
    model = fl.SoftmaxRegression(3, 3)
    model.params["layer0.weight"] = np.eye(3)
    assert fl.Trainer(model).evaluate([[2.0, 1.0, 0.1]], [target]) == pytest.approx(loss, abs=0.005)


@pytest.mark.parametrize("by_hand", [True, False])
def test_first_step_of_a_line_worked(by_hand):
    model = fl.LinearRegression(1)
    trainer = fl.Trainer(model, fl.SGD(lr=0.1))
    X, y = [1, 2, 3], [2, 4, 6]
    if by_hand:
        trainer.zero_grad()
        trainer.forward(trainer.batch(X, y))
        trainer.backward()
        trainer.step()
    else:
        trainer.fit(X, y, steps=1, batch_size=3)
    assert model.params.flat == pytest.approx([28 / 15, 0.8], rel=1e-15)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_hundred_steps_follow_the_twin(loss):
    model = fl.MLP([5, 9, 4], "tanh", loss)
    step, (X, y) = twin(model, 20), arrays(model, 20)
    history = fl.Trainer(model, fl.Adam(lr=0.01)).fit(X, y, steps=100, batch_size=20)
    for expected in history.loss:
        step.zero_grad()
        assert step.forward(X, y) == pytest.approx(expected, rel=1e-12)
        step.backward()
        step.step(lr=0.01)
    np.testing.assert_allclose(model.params.flat, step.params, rtol=0, atol=1e-12)


def test_a_line_is_fitted_and_a_large_lr_diverges():
    X = np.linspace(-5.0, 5.0, 20)
    model = fl.LinearRegression(1)
    history = fl.Trainer(model, fl.SGD(lr=0.01)).fit(X, 2 * X, steps=2000, batch_size=20)
    assert history.loss[-1] < 1e-20
    assert model.params.flat == pytest.approx([2.0, 0.0], abs=1e-9)
    assert model.predict([10.0]) == pytest.approx([20.0])

    model = fl.LinearRegression(1)
    with pytest.raises(fl.DivergenceError):
        fl.Trainer(model, fl.SGD(lr=1.0)).fit(X, 2 * X, steps=2000, batch_size=20)
    assert np.isfinite(model.params.flat).all()


def test_softmax_regression_separates_three_blobs():
    rng = np.random.default_rng(3)
    y = np.arange(150) % 3
    X = np.array([[0.0, 4.0], [4.0, -4.0], [-4.0, -4.0]])[y] + rng.normal(size=(150, 2))
    model = fl.SoftmaxRegression(2, 3)
    fl.Trainer(model, fl.Adam(lr=0.1)).fit(X, y, epochs=20, batch_size=10, shuffle=True)
    assert (model.predict(X) == y).mean() > 0.97
    proba = model.predict_proba(X)
    assert proba.sum(axis=1) == pytest.approx(np.ones(150))
    assert -np.log(proba[np.arange(150), y]).mean() == pytest.approx(fl.Trainer(model).evaluate(X, y), rel=1e-12)


def test_identical_initial_weights_stay_identical():
    X, y = RNG.normal(size=(64, 3)), RNG.normal(size=64)
    same = fl.MLP([3, 5, 4, 1], activation="tanh")
    for tensor in same.params.values():
        tensor[...] = 0.5
    random = fl.MLP([3, 5, 4, 1], activation="tanh")
    for model in (same, random):
        before = model.params.flat.copy()
        fl.Trainer(model, fl.Adam(lr=0.01)).fit(X, y, steps=100, batch_size=16)
        assert not np.array_equal(before, model.params.flat)
    rows = same.params["layer0.weight"]
    assert (rows == rows[0]).all()
    assert (same.params["layer1.weight"] == same.params["layer1.weight"][0, 0]).all()
    assert len(np.unique(random.params["layer0.weight"], axis=0)) == 5


def test_no_cliff_from_one_width_to_the_next():
    """pytorch#144633: a step took many times as long past a width of 45.  Here neighbours take about the same."""
    X = RNG.normal(size=(64, 46))
    best = {}
    for _ in range(5):
        for width in (44, 45, 46, 47):
            trainer = fl.Trainer(fl.MLP([46, width, width, 1]), fl.Adam())
            history = trainer.fit(X, X[:, :1], steps=50, batch_size=64)
            best[width] = min(best.get(width, np.inf), np.diff(history.seconds).min())
    print({width: f"{seconds * 1e6:.1f} us" for width, seconds in best.items()})
    assert max(best.values()) < 3.0 * min(best.values())


# Gradients, the twin, and trajectories


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_gradients_against_complex_step(widths, activation, loss):
    model = fl.MLP(widths, activation, loss)
    model.params.flat += RNG.normal(0.0, 0.1, model.num_params)      # so that no bias is 0
    for n in (1, 7, 8, 33):
        X, y = arrays(model, n)
        value, got = gradient(model, X, y)
        step = twin(model, n, complex)
        assert value == pytest.approx(step.forward(X.astype(complex), y).real, rel=1e-14)
        # All parameters of a small model, 60 of a large one.
        places = RNG.permutation(model.num_params)[:60]
        expected = np.empty(len(places))
        for k, place in enumerate(places):
            step.params[place] += 1e-30j
            expected[k] = step.forward(X.astype(complex), y).imag / 1e-30
            step.params[place] = step.params[place].real
        assert np.abs(got[places] - expected).max() <= 1e-13 * np.abs(expected).max()
        # The twin's own gradient, which covers the parameters not drawn.
        step = twin(model, n)
        step.forward(X, y)
        step.backward()
        assert np.abs(got - step.grads).max() <= 1e-13 * np.abs(got).max()


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_outputs_equal_the_twin_at_every_row(activation, loss):
    model = fl.MLP([5, 45, 46, 3], activation, loss)
    X, _ = arrays(model, 1500)          # more than one block
    expected = twin(model, 1500).outputs(X)
    np.testing.assert_allclose(model.outputs(X), expected, rtol=1e-12, atol=1e-14)
    predicted = expected.argmax(axis=1) if loss == "cross_entropy" else expected
    np.testing.assert_allclose(model.predict(X), predicted, rtol=1e-12, atol=1e-14)


def test_predictions_leave_a_step_alone():
    model = fl.MLP([3, 8, 1])
    X, y = arrays(model, 20)
    expected = gradient(model, X, y)[1]
    trainer = fl.Trainer(model)
    trainer.zero_grad()
    trainer.forward(trainer.batch(X, y))
    model.predict(X[:3])
    trainer.backward()
    assert np.array_equal(model.grads.flat, expected)


def test_tanh_is_accurate_everywhere():
    mpmath = pytest.importorskip("mpmath")
    model = fl.MLP([1, 1, 1], "tanh")
    model.params.flat[:] = [1.0, 0.0, 1.0, 0.0]
    x = np.concatenate([
        RNG.choice([-1.0, 1.0], 4000) * 10.0 ** RNG.uniform(-320.0, 2.0, 4000), RNG.uniform(-4.0, 4.0, 8000),
        [0.0, 5e-324, 19.0, 20.0, 21.0, -710.0, 1e5, -1e308, 1.7976931348623157e308],
    ])
    with mpmath.workprec(200):
        exact = [mpmath.tanh(mpmath.mpf(v)) for v in x.tolist()]
        ulp = np.spacing(np.abs([float(e) for e in exact]))
        error = [float(abs(mpmath.mpf(v) - e)) for v, e in zip(model.predict(x).tolist(), exact, strict=True)]
    assert (error / ulp).max() <= 3.0


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_200_steps_follow_torch(activation, loss, optimizer):
    torch = pytest.importorskip("torch", reason="torch, in the extra bench, is the independent implementation")
    model = fl.MLP([5, 45, 16, 3], activation, loss)
    X, y = arrays(model, 40)
    hidden = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[activation]
    layers = [torch.nn.Linear(a, b, dtype=torch.float64) for a, b in ((5, 45), (45, 16), (16, 3))]
    net = torch.nn.Sequential(layers[0], hidden(), layers[1], hidden(), layers[2])
    for theirs, ours in zip(net.parameters(), model.params.values(), strict=True):
        theirs.data[...] = torch.from_numpy(ours)
    score = torch.nn.MSELoss() if loss == "mse" else torch.nn.CrossEntropyLoss()
    opt = getattr(torch.optim, optimizer)(net.parameters(), lr=0.01)
    expected = []
    for step in range(200):
        rows = np.arange(8 * step, 8 * step + 8) % 40
        opt.zero_grad()
        value = score(net(torch.from_numpy(X[rows])), torch.from_numpy(y[rows]))
        value.backward()
        opt.step()
        expected.append(value.item())
    history = fl.Trainer(model, getattr(fl, optimizer)(lr=0.01)).fit(X, y, steps=200, batch_size=8)
    np.testing.assert_allclose(history.loss, expected, rtol=0.0, atol=1e-10)
    for theirs, ours in zip(net.parameters(), model.params.values(), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0.0, atol=1e-10)


# The same bits


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_same_bits_at_any_number_of_threads(loss, many_threads):
    expected = None
    for threads in (1, 2, 3, 4, 8, 8, 3):
        fl.set_num_threads(threads)
        model = fl.MLP([46, 130, 67, 20], "tanh", loss)
        X, y = arrays(model, 600)
        history = fl.Trainer(model, fl.Adam(lr=0.01)).fit(X, y, steps=6, batch_size=403)
        got = model.params.flat.tobytes(), history.loss.tobytes(), history.norm.tobytes(), model.outputs(X).tobytes()
        expected = expected or got
        assert got == expected


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_fit_and_the_five_moves_give_the_same_bits(loss):
    def make():
        model = fl.MLP([5, 45, 3], "relu", loss)
        return model, fl.Trainer(model, fl.Adam(lr=0.01), clip_norm=0.5)

    fitted, trainer = make()
    X, y = arrays(fitted, 24)
    history = trainer.fit(X, y, steps=6, batch_size=7)
    model, trainer = make()
    losses = []
    for step in range(6):
        rows = np.arange(7 * step, 7 * step + 7) % 24
        trainer.zero_grad()
        losses.append(trainer.forward(trainer.batch(X[rows], y[rows])))
        trainer.backward()
        trainer.clip_grad_norm()
        trainer.step()
    assert history.clipped.any()
    assert np.array_equal(history.loss, losses)
    assert np.array_equal(fitted.params.flat, model.params.flat)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_micro_batches_add_up_to_the_bits_of_the_large_batch(loss):
    params = []
    for accumulate, size in ((1, 32), (4, 8), (2, 16), (32, 1)):
        model = fl.MLP([5, 45, 3], "tanh", loss)
        X, y = arrays(model, 64)
        fl.Trainer(model, fl.Adam(lr=0.01), grad_accum=accumulate).fit(X, y, steps=5, batch_size=size)
        params.append(model.params.flat.tobytes())
    assert len(set(params)) == 1


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_resumed_run_has_the_same_bits(loss, tmp_path):
    def make():
        model = fl.MLP([5, 9, 3], "tanh", loss)
        return fl.Trainer(model, fl.Adam(lr=0.01)), *arrays(model, 30)

    class StopAt7:
        def on_step(self, trainer):
            if trainer.steps == 7:
                trainer.stop("enough")

    whole, X, y = make()
    expected = whole.fit(X, y, epochs=3, batch_size=8, shuffle=True, validation=(X[:9], y[:9]))
    broken, X, y = make()
    broken.fit(X, y, epochs=3, batch_size=8, shuffle=True, validation=(X[:9], y[:9]), callbacks=[StopAt7()])
    broken.save(tmp_path / "run.npz")
    resumed = fl.Trainer.load(tmp_path / "run.npz")
    for other_X, other_y in ((X + 1.0, y), (X, y[::-1]), (X[:29], y[:29])):
        with pytest.raises(fl.CheckpointError):
            resumed.resume(other_X, other_y)
    history = resumed.resume(X, y, validation=(X[:9], y[:9]))
    assert np.array_equal(history.loss, expected.loss)
    assert np.array_equal(resumed.model.params.flat, whole.model.params.flat)
    assert np.array_equal(resumed.model.predict(X), whole.model.predict(X))


# What is taken and what is refused


def test_integers_lists_and_other_layouts_are_taken():
    model = fl.MLP([2, 4, 1])
    X = RNG.integers(-9, 9, size=(10, 2))
    y = RNG.integers(-9, 9, size=10)
    trainer = fl.Trainer(model)
    expected = trainer.evaluate(X.astype(float), y.reshape(-1, 1).astype(float))
    strided = np.zeros((20, 4))
    strided[::2, ::2] = X
    read_only = X.astype(float)
    read_only.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + X.astype(float).tobytes(), np.uint8)[1:].view(np.float64).reshape(10, 2)
    assert not unaligned.flags.aligned
    kinds = [X.astype(kind) for kind in (np.float32, np.float16, ">f4", ">f8", np.int8)]
    for same in (X, X.tolist(), *kinds, np.asfortranarray(X), strided[::2, ::2], read_only, unaligned):
        assert trainer.evaluate(same, y) == expected


def test_class_ids_of_any_integer_type_are_taken():
    model = fl.SoftmaxRegression(2, 2, init_std=1.0)
    X, y = arrays(model, 10)
    trainer = fl.Trainer(model)
    expected = trainer.evaluate(X, y)
    for same in (y.tolist(), y.astype(np.uint8), y.astype(bool), y.astype(">i4"), np.repeat(y, 2)[::2]):
        assert trainer.evaluate(X, same) == expected


X4, Y4 = np.ones((4, 2)), np.ones((4, 3))


class Sparse:
    """What of scipy.sparse can be seen from outside."""

    def toarray(self):
        return X4


def spoiled(array, place, value):
    array = np.array(array, float)
    array[place] = value
    return array


@pytest.mark.parametrize("X, y, error, message", [
    (X4.astype(complex), Y4, TypeError, "got complex128: take its real part"),
    (X4.astype(np.longdouble), Y4, TypeError, r"got float128: convert it with astype\(np.float64\)"),
    ([["a", "b"]], Y4, TypeError, "got <U1: turn text into numbers first"),
    (np.array([["2026-11-24"] * 2] * 4, "datetime64[D]"), Y4, TypeError, "turn dates into numbers first"),
    ([[1, 2], [3, "red"], [5, 6], [7, 8]], Y4, TypeError, "got <U"),
    (np.array([[1, 2], [3, "red"]], object), Y4, TypeError, r"got object: X\[1, 1\] = 'red' is of type str"),
    (np.array([[1, True], [3, 4.0]], object), Y4, TypeError, r"all are numbers, so convert it with astype"),
    (X4, np.array([[1, 2, None]], object), TypeError, r"got object: y\[0, 2\] = None is of type NoneType"),
    (Sparse(), Y4, TypeError, r"X is a sparse Sparse, expected a dense array: X\.toarray\(\)"),
    (np.ma.masked_less(X4, 2.0), Y4, TypeError, r"X is a masked array, .*: leave out the rows .*X\.filled"),
    (X4, [np.ma.masked_less(np.ones(3), 2.0)] * 4, TypeError, "y is a masked array"),
    ([[1.0, 2.0], [3.0]], Y4, ValueError, "X cannot be read as an array: .*inhomogeneous"),
    (X4, None, TypeError, "y is missing"),
    (None, Y4, TypeError, "X must be float64"),
    (spoiled(X4, (3, 1), np.nan), Y4, ValueError, r"X\[3, 1\] = nan is not finite"),
    (X4, spoiled(Y4, (1, 2), -np.inf), ValueError, r"y\[1, 2\] = -inf is not finite"),
    (np.ones((4, 3)), Y4, ValueError, r"X has shape \(4, 3\), expected \(N, 2\)"),
    (np.ones(4), Y4, ValueError, r"X has shape \(4,\), expected \(N, 2\)"),
    (X4, np.ones((4, 2)), ValueError, r"y has shape \(4, 2\), expected \(N, 3\)"),
    (X4, np.ones(4), ValueError, r"y has shape \(4,\), expected \(N, 3\)"),
    (X4, Y4[:3], ValueError, "X has 4 rows, y has 3"),
    (X4[:0], Y4[:0], ValueError, r"X has shape \(0, 2\)"),
])
def test_bad_arrays_are_refused(X, y, error, message):
    model = fl.MLP([2, 4, 3])
    trainer = fl.Trainer(model)
    before = model.params.flat.tobytes()
    for call in (trainer.batch, trainer.evaluate, lambda X, y: trainer.fit(X, y, steps=3)):
        with pytest.raises(error, match=message):
            call(X, y)
    assert (model.params.flat.tobytes(), trainer.steps) == (before, 0)


@pytest.mark.parametrize("y, error, message", [
    ([0, 1, -1, 2], IndexError, r"y\[2\] = -1 is outside \[0, 3\)"),
    ([0, 1, 2, 3], IndexError, r"y\[3\] = 3 is outside \[0, 3\)"),
    ([0, 2**63 - 1, 2, 1], IndexError, r"y\[1\] = 9223372036854775807 is outside"),
    (np.array([0, 2**64 - 1, 2, 1], np.uint64), IndexError, r"y\[1\] = 18446744073709551615 is outside"),
    ([1, 2, 3, 1], IndexError, r"y\[2\] = 3 is outside \[0, 3\); .*, set model.classes = \[1, 2, 3\]$"),
    ([0.0, 1.0, np.nan, 0.0], ValueError, r"y\[2\] = nan is not finite"),
    ([0.0, 1.0, 1.0, 0.0], ValueError, r"2 distinct labels \(0\.0, 1\.0\), the model has 3 .*model\.classes = "),
    (list("abcd"), ValueError, "4 distinct labels"),
    (["a", 1, "b", "c"], TypeError, r"labels of one kind, .*: y\[1\] = 1 is of type int"),
    (np.array(["a", np.nan, "b", "c"], object), TypeError, r"y\[1\] = nan is of type float"),
    (np.zeros(4, complex), TypeError, "labels: integers, bool, float or str, got complex128"),
    (np.ma.masked_equal([0, 1, 2, 0], 2), TypeError, "y is a masked array"),
    (Sparse(), TypeError, r"y is a sparse Sparse, .* y\.toarray\(\)"),
    ([[0], [1], [2], [0]], ValueError, r"y has shape \(4, 1\), expected \(N,\): one label a row, as np\.ravel\(y\) is"),
    ([0, 1, 2], ValueError, "X has 4 rows, y has 3"),
])
def test_bad_class_ids_are_refused(y, error, message):
    model = fl.SoftmaxRegression(2, 3)
    with pytest.raises(error, match=message):
        fl.Trainer(model).fit(X4, y, steps=3)
    assert model.classes is None


# Labels of classes


LABELS = [["ant", "bee", "cat"], ["\ud83d", "a b", "é"], [-1.5, 0.0, 3.0], [2.0, 1.0, 0.0]]


@pytest.mark.parametrize("labels", LABELS, ids=range(4))
def test_labels_of_any_kind_train_as_their_sorted_places_do(labels, tmp_path):
    X, ids = arrays(fl.SoftmaxRegression(3, 3), 30)
    expected = fl.Trainer(fl.SoftmaxRegression(3, 3), fl.Adam(lr=0.1))
    expected.fit(X, ids, steps=20, batch_size=8, validation=(X[:9], ids[:9]))
    y = np.array(sorted(labels))[ids]
    trainer = fl.Trainer(fl.SoftmaxRegression(3, 3), fl.Adam(lr=0.1))
    trainer.fit(X, y, steps=20, batch_size=8, validation=(X[:9], y[:9].tolist()))
    model = trainer.model
    assert np.array_equal(model.params.flat, expected.model.params.flat)
    assert trainer.history.evaluations == expected.history.evaluations
    assert model.classes.tolist() == sorted(labels)
    assert model.predict(X).tolist() == [sorted(labels)[i] for i in expected.model.predict(X)]
    assert np.array_equal(model.predict_proba(X), expected.model.predict_proba(X))
    # Objects, as pandas gives them, and a checkpoint, whose JSON brings the labels back as they were.
    assert trainer.evaluate(X, y.astype(object)) == expected.evaluate(X, ids)
    trainer.save(tmp_path / "run.npz")
    again = fl.Trainer.load(tmp_path / "run.npz").model
    assert (again.classes.tolist(), again.classes.dtype.kind) == (sorted(labels), y.dtype.kind)
    assert again.predict(X).tolist() == model.predict(X).tolist()


def test_classes_that_are_named_keep_their_order_and_fit_a_part_of_the_data():
    model = fl.SoftmaxRegression(2, 3, init_std=1.0)
    model.classes = ["low", "mid", "high"]
    X, ids = arrays(model, 10)
    y = np.array(["low", "mid", "high"])[ids]
    plain = fl.SoftmaxRegression(2, 3, init_std=1.0)
    assert fl.Trainer(model).evaluate(X, y) == fl.Trainer(plain).evaluate(X, ids)
    assert fl.Trainer(model).evaluate(X[:2], ["mid", "mid"]) == fl.Trainer(plain).evaluate(X[:2], [1, 1])
    model.classes = [3, 1, 2]       # integers that are no ids
    assert fl.Trainer(model).evaluate(X[:3], [1, 2, 3]) == fl.Trainer(plain).evaluate(X[:3], [1, 2, 0])


def test_a_label_that_the_model_does_not_know_is_named_with_its_place():
    model = fl.SoftmaxRegression(2, 3)
    trainer = fl.Trainer(model)
    trainer.fit(X4, ["b", "c", "a", "a"], steps=1)
    before = model.params.flat.tobytes()
    with pytest.raises(fl.DataError, match=r"y\[2\] = 'dog' is not one of the model's 3 classes: 'a', 'b', 'c'"):
        trainer.fit(X4, ["a", "b", "dog", "c"], steps=1)
    with pytest.raises(fl.DataError, match=r"y\[0\] = 0 is not one of the model's 3 classes: 'a', 'b', 'c'"):
        trainer.fit(X4, [0, 1, 2, 0], steps=1, validation=(X4, ["a"] * 4))
    with pytest.raises(fl.DataError, match=r"y\[3\] = 'd'"):
        trainer.fit(X4, ["a"] * 4, steps=1, validation=(X4, ["a", "b", "a", "d"]))
    assert (model.params.flat.tobytes(), trainer.steps) == (before, 1)
    assert model.classes.tolist() == ["a", "b", "c"]
    model.classes = None
    trainer.fit(X4, [0, 1, 2, 0], steps=1)
    assert model.classes.tolist() == [0, 1, 2]


def test_two_classes_of_bool_are_false_and_true():
    model = fl.SoftmaxRegression(2, 2)
    fl.Trainer(model).fit(X4, np.ones(4, bool), steps=50)
    assert model.predict(X4).tolist() == [True] * 4
    assert model.predict(X4).dtype == bool
    assert fl.Trainer(model).evaluate(X4, [1, 1, 1, 1]) == fl.Trainer(model).evaluate(X4, [True] * 4)


@pytest.mark.parametrize("labels, error, message", [
    (["a", "b"], ValueError, "classes = 'a', 'b': the model has 3 classes, and needs as many distinct labels"),
    (["a", "b", "a"], ValueError, "as many distinct labels"),
    (["a", "b", 3], TypeError, r"classes\[2\] = 3 is of type int"),
    ([b"a", b"b", b"c"], TypeError, r"got \|S1"),
    ([1.0, 2.0, np.inf], ValueError, r"classes\[2\] = inf is not finite"),
    ("abc", ValueError, "classes has shape"),
])
def test_classes_that_are_not_distinct_labels_are_refused(labels, error, message):
    model = fl.SoftmaxRegression(2, 3)
    with pytest.raises(error, match=message):
        model.classes = labels
    assert model.classes is None
    with pytest.raises(TypeError, match="loss='mse' has no classes"):
        fl.LinearRegression(2, 3).classes = labels


def test_data_frames_are_taken_as_their_values():
    pandas = pytest.importorskip("pandas", reason="pandas, which users have, is no dependency")
    model = fl.SoftmaxRegression(2, 3)
    X, ids = arrays(model, 30)
    frame = pandas.DataFrame({"a": X[:, 0], "b": X[:, 1].astype(np.float32), "name": np.array(["x", "y", "z"])[ids]})
    X = np.column_stack([X[:, 0], X[:, 1].astype(np.float32)])
    trainer = fl.Trainer(model, fl.Adam(lr=0.1))
    trainer.fit(frame[["a", "b"]], frame["name"], steps=20, validation=0.2)
    assert trainer.evaluate(frame[["a", "b"]], frame["name"].astype("category")) == trainer.evaluate(X, frame["name"])
    assert set(model.predict(frame[["a", "b"]])) <= {"x", "y", "z"}
    with pytest.raises(TypeError, match=r"got object: X\[0, 1\] = '[xyz]' is of type str"):
        trainer.evaluate(frame[["a", "name"]], frame["name"])


def test_one_column_is_named_by_row_alone():
    with pytest.raises(ValueError, match=r"^y\[2\] = nan is not finite$"):
        fl.Trainer(fl.LinearRegression(1)).batch([1, 2, 3], [1.0, 2.0, float("nan")])


def test_prepared_data_of_another_model_is_refused():
    trainer = fl.Trainer(fl.SoftmaxRegression(2, 3))
    wide, _ = fl.Trainer(fl.SoftmaxRegression(2, 4)).prepare(X4, [0, 1, 2, 3])
    values, _ = fl.Trainer(fl.LinearRegression(2)).prepare(X4, np.ones(4))
    columns, _ = fl.Trainer(fl.SoftmaxRegression(4, 3)).prepare(np.ones((4, 4)), [0, 1, 2, 1])
    for data, message in ((wide, "largest class id in y is 3"), (values, "is -1"), (columns, "X has 4 columns")):
        with pytest.raises(ValueError, match=message):
            trainer.evaluate(data)
    with pytest.raises(ValueError, match="y has 0 columns, the model gives 1"):
        fl.Trainer(fl.LinearRegression(2)).evaluate(wide)


@pytest.mark.parametrize("make, error, message", [
    (lambda: fl.MLP([3]), ValueError, "at least two are needed"),
    (lambda: fl.MLP(2, 3), TypeError, "widths = 2: expected a list"),
    (lambda: fl.MLP([3, 0, 1]), ValueError, r"widths\[1\] = 0 must be an int of at least 1"),
    (lambda: fl.MLP([3, 2.0, 1]), TypeError, r"widths\[1\] = 2.0 must be an int of at least"),
    (lambda: fl.MLP([3, 2], activation="gelu"), ValueError, "activation = 'gelu' is not one of 'relu', 'tanh'"),
    (lambda: fl.MLP([3, 2], loss="mae"), ValueError, "loss = 'mae' is not one of"),
    (lambda: fl.MLP([3, 1], loss="cross_entropy"), ValueError, "at least 2 classes"),
    (lambda: fl.MLP([3, 2], init_std=-1.0), ValueError, "init_std = -1.0"),
    (lambda: fl.LinearRegression(0), ValueError, "n_in = 0 must be an int of at least 1"),
    (lambda: fl.SoftmaxRegression(3, True), TypeError, "n_classes = True must be an int"),
    (lambda: fl.MLP([3, 2]).predict_proba(np.ones((1, 3))), TypeError, "gives values, not probabilities"),
])
def test_bad_configurations_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_initial_weights_scale_with_fan_in():
    model = fl.MLP([400, 300, 200, 100])
    for i, gain, n_in in ((0, 2.0, 400), (1, 2.0, 300), (2, 1.0, 200)):
        weight = model.params[f"layer{i}.weight"]
        assert weight.std() == pytest.approx((gain / n_in) ** 0.5, rel=0.02)
        assert not model.params[f"layer{i}.bias"].any()
    assert fl.MLP([400, 300, 2], "tanh").params["layer0.weight"].std() == pytest.approx(0.05, rel=0.02)
    assert fl.MLP([400, 300], init_std=0.3).params["layer0.weight"].std() == pytest.approx(0.3, rel=0.02)
    assert np.array_equal(model.params.flat, fl.MLP([400, 300, 200, 100]).params.flat)
    assert not np.array_equal(model.params.flat, fl.MLP([400, 300, 200, 100], seed=1).params.flat)


def test_config_makes_the_same_model_again():
    for model in (fl.MLP([3, 4, 2], "tanh", "cross_entropy"), fl.LinearRegression(3, 2), fl.SoftmaxRegression(3, 4)):
        again = type(model)(**model.config)
        assert again.config == model.config
        assert again.params.shapes == model.params.shapes


def test_fit_has_the_bits_of_the_moves_over_more_rows_than_a_block_of_a_product():
    """Sums over 600 rows go in blocks; fit overwrites the gradient with the first of them, the moves add them all."""
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(600, 3)), rng.normal(size=(600, 2))
    fitted, moved = (fl.Trainer(fl.MLP([3, 5, 2], seed=1), fl.Adam(lr=0.01)) for _ in range(2))
    losses = fitted.fit(X, y, steps=3, batch_size=600).loss
    batch = moved.batch(X, y)
    for step in range(3):
        moved.zero_grad()
        assert moved.forward(batch) == losses[step]
        moved.backward()
        moved.step()
    assert np.array_equal(fitted.model.params.flat, moved.model.params.flat)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_nan_passes_through_a_layer(activation):
    model = fl.MLP([2, 3, 1], activation=activation)
    model.params.flat[0] = np.nan       # of the first hidden unit
    trainer = fl.Trainer(model, fl.SGD(lr=0.1))
    with pytest.raises(fl.DivergenceError):
        trainer.forward(trainer.batch(np.ones((4, 2)), np.ones(4)))
