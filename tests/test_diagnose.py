"""fastloop.diagnose: what is wrong with a faulty run is named, and nothing is found in a healthy one."""

import numpy as np
import pytest

import fastloop as fl
from fastloop import reference
from fastloop.diagnose import FLAT_STEPS, Diagnosis, Finding, diagnose

DOCS = fl.load_docs()
TOK = fl.CharTokenizer(DOCS)
LINEAR = fl.schedules.linear


def run(steps=1000, batch_size=1, lr=0.01, optimizer=None, schedule=LINEAR, clip_norm=None, docs=DOCS, **settings):
    """A Trainer after a fit of the default kind, or the History of one that diverged."""
    fit = {name: settings.pop(name) for name in ("validation", "eval_every", "shuffle") if name in settings}
    model = fl.BigramLM(TOK.vocab_size, **settings)
    optimizer = optimizer or fl.Adam(lr=lr, betas=(0.85, 0.99))
    trainer = fl.Trainer(model, optimizer, tokenizer=TOK, schedule=schedule(), clip_norm=clip_norm)
    try:
        trainer.fit(docs, steps=steps, batch_size=batch_size, **fit)
    except fl.DivergenceError:
        assert trainer.history.stop_reason == "diverged"
    return trainer


def names(diagnosis):
    return {finding.name for finding in diagnosis}


def the(diagnosis, name):
    (finding,) = (finding for finding in diagnosis if finding.name == name)
    assert finding.message
    assert finding.advice
    return finding.numbers


def bigram_loop(zero, steps=300, batch_size=1, lr=0.01, optimizer="adam", seed=42):
    """A user's loop in NumPy, which may forget to set the gradients to zero; returns what it recorded."""
    V, D, T = TOK.vocab_size, 16, 8
    weights = np.random.default_rng(seed).normal(0.0, 0.08, (2 * V + T) * D)
    step = reference.BigramStep(weights, V, D, T, N=T * batch_size)
    history = fl.History()
    for i in range(steps):
        batch = []
        for b in range(batch_size):
            ids = [TOK.bos, *TOK.encode(DOCS[(i * batch_size + b) % len(DOCS)]), TOK.bos]
            n = min(T, len(ids) - 1)
            batch += [(ids[p], ids[p + 1], p, 1.0 / (n * batch_size)) for p in range(n)]
        inputs, targets, positions, weights = (np.array(column) for column in zip(*batch, strict=True))
        if zero:
            step.zero_grad()
        loss = step.forward(inputs, targets, positions, weights)
        step.backward()
        history.append(loss, lr, reference.grad_norm(step.grads))
        if optimizer == "adam":
            step.step(lr)
        else:
            step.params -= lr * step.grads
    return history


def line_loop(zero, lr=0.01, steps=200, recorded=("lr", "norm")):
    """y = 2x by gradient descent on three points, as a first lesson has it."""
    x, w, dw = np.array([1.0, 2.0, 3.0]), np.zeros(1), np.zeros(1)
    history = fl.History()
    for _ in range(steps):
        error = w * x - 2.0 * x
        if zero:
            dw[:] = 0.0
        dw += 2.0 * (error * x).mean()
        columns = {"lr": lr, "norm": abs(dw[0])}
        history.append((error**2).mean(), **{name: columns[name] for name in recorded})
        w -= lr * dw
    return history


# --- faulty runs

@pytest.mark.parametrize("batch_size, lr", [(1, 1e-7), (32, 1e-7), (1, 1e-5)])
def test_learning_rate_far_too_small(batch_size, lr):
    diagnosis = diagnose(run(batch_size=batch_size, lr=lr))
    assert names(diagnosis) == {"lr_too_small"}
    numbers = the(diagnosis, "lr_too_small")
    assert numbers["lr"] == lr
    assert abs(numbers["end"] - numbers["start"]) < 0.02
    assert numbers["promised"] < 1e-3


def test_learning_rate_of_zero():
    with pytest.warns(fl.FastloopWarning, match="lr is 0"):
        assert names(diagnose(run(steps=300, lr=0.0))) == {"lr_zero"}


@pytest.mark.parametrize("batch_size, lr", [(1, 1.0), (1, 3.0), (32, 3.0), (1, 100.0)])
def test_learning_rate_far_too_large(batch_size, lr):
    trainer = run(batch_size=batch_size, lr=lr)
    numbers = the(diagnose(trainer), "lr_too_large")
    assert names(diagnose(trainer)) <= {"lr_too_large", "diverging"}
    assert numbers["first_loss"] == trainer.history.loss[0]
    assert numbers["worst_tenth"] > 10.0
    assert numbers["lr"] == lr


@pytest.mark.parametrize("lr", [100.0, 1000.0])
def test_divergence_that_was_caught(lr):
    trainer = run(batch_size=32, optimizer=fl.SGD(lr=lr))
    diagnosis = diagnose(trainer)
    assert names(diagnosis) == {"diverging", "lr_too_large", "exploding_gradients"}
    numbers = the(diagnosis, "diverging")
    assert numbers["step"] == len(trainer.history) + 1
    assert numbers["last_norms"] == trainer.history.norm[-5:].tolist()


def test_divergence_in_the_first_step():
    diagnosis = diagnose(run(init_std=1e200))
    assert names(diagnosis) == {"diverging"}
    assert the(diagnosis, "diverging")["step"] == 1


def test_nan_in_a_loop_that_goes_on():
    history = fl.History()
    for i in range(50):
        history.append(1.0 / (i + 1) if i < 7 else np.nan, 0.1, 1.0 if i < 7 else np.nan)
    diagnosis = diagnose(history)
    assert names(diagnosis) == {"diverging"}
    assert the(diagnosis, "diverging")["step"] == 8
    assert the(diagnosis, "diverging")["last_loss"] == 1.0 / 7


def test_divergence_that_stays_finite():
    diagnosis = diagnose(line_loop(True, lr=0.25))
    assert "diverging" in names(diagnosis)
    assert the(diagnosis, "diverging")["end"] > 1e10


def test_a_loss_that_falls_and_rises_again():
    history = fl.History()
    noise = np.random.default_rng(0).normal(0.0, 0.05, 400)
    for i in range(400):
        history.append(3.3 - min(i, 200) / 200 + max(0, i - 300) / 120 + noise[i], 0.01, 1.0)
    diagnosis = diagnose(history)
    assert names(diagnosis) == {"diverging"}
    assert the(diagnosis, "diverging")["best"] == pytest.approx(2.3, abs=0.05)


def test_stalled():
    """Labels that have nothing to do with the inputs."""
    rng = np.random.default_rng(0)
    trainer = fl.Trainer(fl.SoftmaxRegression(4, 2), fl.SGD(lr=0.1))
    trainer.fit(rng.normal(size=(5000, 4)), rng.integers(0, 2, 5000), steps=1000, batch_size=16)
    diagnosis = diagnose(trainer)
    assert names(diagnosis) == {"stalled"}
    assert the(diagnosis, "stalled")["start"] == pytest.approx(np.log(2), abs=0.05)


def test_clipping_at_every_step():
    diagnosis = diagnose(run(clip_norm=1e-3))
    assert names(diagnosis) == {"clipping"}
    numbers = the(diagnosis, "clipping")
    assert (numbers["share"], numbers["clip_norm"]) == (1.0, 1e-3)
    assert numbers["median_norm"] > 0.1


@pytest.mark.parametrize(("share", "found"), [(1.0, {"clipping"}), (0.96, {"clipping"}), (0.9, set())])
def test_clipping_at_most_steps(share, found):
    history = fl.History()
    for i in range(200):
        history.append(3.0 - 0.01 * i, 0.1, 1.0, clipped=i < 200 * share)
    assert names(diagnose(history)) == found


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (2.0, np.inf)])
def test_a_loop_that_goes_on_after_what_is_not_finite(loss, norm):
    history = fl.History()
    for i in range(200):
        history.append(*((loss, 0.1, norm) if i == 150 else (3.0 - 0.01 * i, 0.1, 1.0)))
    assert the(diagnose(history), "diverging")["step"] == 151


def test_exploding_gradients():
    """One row of X that is 10,000 times too large, reached after some steps."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 4))
    y = np.sin(X[:, 0])
    X[300] *= 1e4
    trainer = fl.Trainer(fl.MLP([4, 32, 1]), fl.Adam(lr=0.001))
    trainer.fit(X, y, steps=400, batch_size=4)
    numbers = the(diagnose(trainer), "exploding_gradients")
    assert numbers["step"] == 76        # rows 300 to 303
    assert numbers["norm"] > 100.0 * numbers["largest_before"]


def test_vanishing_gradients_of_a_whole_run():
    X = np.random.default_rng(0).normal(size=(100, 4))
    trainer = fl.Trainer(fl.MLP([4, *[16] * 20, 1], "tanh", init_std=0.02), fl.SGD(lr=0.01))
    trainer.fit(X, np.sin(X[:, 0]), steps=1000, batch_size=100)
    diagnosis = diagnose(trainer)
    assert names(diagnosis) == {"vanishing_gradients"}
    assert the(diagnosis, "vanishing_gradients")["last_norm"] < 1e-4


def test_vanishing_gradients_of_some_tensors():
    X = np.random.default_rng(0).normal(size=(500, 4))
    trainer = fl.Trainer(fl.MLP([4, *[16] * 20, 1], "tanh", init_std=0.02), fl.Adam(lr=0.01))
    trainer.fit(X, X[:, 0] * X[:, 1], steps=500, batch_size=16)
    numbers = the(diagnose(trainer), "vanishing_gradients")
    assert numbers["tensors"][0] == "layer0.weight"
    assert "layer20.bias" not in numbers["tensors"]
    assert max(numbers["rms"]) < 1e-6 * numbers["largest"]


def test_weights_of_zero():
    assert names(diagnose(run(steps=300, init_std=0.0))) == {"vanishing_gradients"}


def test_overfitting():
    validation = {"validation": DOCS[-200:], "eval_every": 25}
    trainer = run(steps=500, batch_size=20, docs=DOCS[:20], schedule=fl.schedules.constant, **validation)
    diagnosis = diagnose(trainer)
    assert names(diagnosis) == {"overfitting", "dead_rows"}     # twenty names do not have all the letters
    numbers = the(diagnosis, "overfitting")
    assert numbers["best"] == min(loss for _, loss in trainer.history.evaluations)
    assert numbers["last"] > 1.5 * numbers["best"]
    assert numbers["train_last"] < numbers["train_then"]
    # The History alone shows the same, but for the moments.
    assert names(diagnose(trainer.history)) == {"overfitting"}


@pytest.mark.parametrize("slope, validation, found", [
    (-0.001, [2.0, 2.1, 2.2, 2.3], True),
    (0.001, [2.0, 2.1, 2.2, 2.3], False),       # the training loss rises as well
    (-0.001, [2.0, 1.9, 1.95, 1.98], False),    # noise
    (-0.001, [2.0, 2.5, 3.0, 1.9], False),      # came back
    (-0.001, [2.0, 2.3], False),
    (-0.001, [2.0, np.nan, 2.3], False),
])
def test_overfitting_is_validation_rising_while_training_falls(slope, validation, found):
    history = fl.History()
    for i in range(100):
        history.append(2.0 + slope * i, 0.01, 1.0)
    history.evaluations = [(25 * (i + 1), loss) for i, loss in enumerate(validation)]
    assert ("overfitting" in names(diagnose(history))) == found


def test_dead_rows_of_an_embedding():
    diagnosis = diagnose(run(batch_size=4, docs=[doc for doc in DOCS if "a" not in doc and "q" not in doc]))
    assert names(diagnosis) == {"dead_rows"}
    numbers = the(diagnosis, "dead_rows")
    assert (numbers["tensor"], numbers["rows"], numbers["of"]) == ("wte", [TOK.encode("a")[0], TOK.encode("q")[0]], 27)


def test_a_short_run_does_not_call_rare_letters_dead():
    trainer = run(steps=100)
    assert trainer.history.predictions < 100 * 27
    assert diagnose(trainer) == []


def test_dead_units():
    X = np.random.default_rng(0).normal(size=(500, 4))
    model = fl.MLP([4, 32, 1])
    model.params["layer0.bias"][:20] = -100.0
    trainer = fl.Trainer(model, fl.Adam(lr=0.01))
    trainer.fit(X, X[:, 0] * X[:, 1], steps=500, batch_size=16)
    numbers = the(diagnose(trainer), "dead_rows")
    assert numbers["tensor"] == "layer0.weight"
    assert numbers["rows"] == list(range(20))


@pytest.mark.parametrize("settings", [
    {}, {"batch_size": 32}, {"lr": 0.001}, {"steps": 100}, {"optimizer": "sgd", "lr": 0.03},
    {"optimizer": "sgd", "lr": 0.01, "batch_size": 32},
], ids=str)
def test_gradients_never_zeroed(settings):
    with np.errstate(over="ignore"):
        diagnosis = diagnose(bigram_loop(zero=False, **settings))
    assert names(diagnosis) == {"never_zeroed"}
    numbers = the(diagnosis, "never_zeroed")
    assert numbers["growth"] > 20.0
    assert numbers["relative_change"] < 0.05


@pytest.mark.parametrize("lr, steps", [(0.01, 100), (0.01, 1000), (0.001, 500)])
def test_gradients_never_zeroed_in_linear_regression(lr, steps):
    diagnosis = diagnose(line_loop(zero=False, lr=lr, steps=steps))
    assert names(diagnosis) == {"never_zeroed"}
    assert the(diagnosis, "never_zeroed")["loss_back"] > 10.0


# --- healthy runs

@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [
    {},
    {"lr": 0.003, "steps": 300},
    {"lr": 0.03, "n_embd": 4},
    {"steps": 60},
    {"batch_size": 32, "shuffle": True},
    {"batch_size": 64, "n_embd": 32, "steps": 500, "lr": 0.01},
    {"batch_size": 512, "steps": 200, "init_std": 0.02},
    {"clip_norm": 1.0},
    {"lr": 0.001, "schedule": fl.schedules.constant},
    {"batch_size": 8, "schedule": fl.schedules.cosine},
    {"batch_size": 8, "docs": sorted(DOCS)},
    {"batch_size": 32, "optimizer": (0.5, 0.0)},
    {"batch_size": 32, "optimizer": (0.1, 0.9)},
    {"init_std": 0.3},
    {"lr": 0.001, "steps": 150, "n_embd": 4},       # still on the plateau of its first weights
    {"lr": 0.03, "steps": 100, "shuffle": True},    # ten steps of noise make a tenth of it
    {"block_size": 40},                             # positions that no document reaches
    {"batch_size": 8, "docs": DOCS[:4500], "validation": DOCS[4500:], "eval_every": 50},
    {"lr": 0.02, "schedule": fl.schedules.constant, "docs": DOCS[:4500], "validation": DOCS[4500:], "eval_every": 20},
], ids=str)
def test_healthy_runs(settings, seed):
    settings = dict(settings)
    if "optimizer" in settings:
        lr, momentum = settings["optimizer"]
        settings["optimizer"] = fl.SGD(lr=lr, momentum=momentum)
    trainer = run(seed=seed, **settings)
    assert diagnose(trainer) == []
    assert diagnose(trainer.history) == []


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_healthy_gpt(batch_size):
    trainer = fl.Trainer(fl.GPT(TOK.vocab_size), fl.Adam(lr=0.01, betas=(0.85, 0.99)), tokenizer=TOK, schedule=LINEAR())
    trainer.fit(DOCS[:4500], steps=500, batch_size=batch_size, validation=DOCS[4500:], eval_every=100)
    assert diagnose(trainer) == []


@pytest.mark.parametrize("activation, batch_size, optimizer", [
    ("relu", 1, fl.SGD(lr=0.01)), ("relu", 16, fl.Adam(lr=0.01)), ("tanh", 16, fl.AdamW(lr=0.001)),
    ("tanh", 500, fl.SGD(lr=0.01, momentum=0.9)), ("relu", 500, fl.Adam(lr=0.01)),
])
def test_a_healthy_mlp(activation, batch_size, optimizer):
    X = np.random.default_rng(0).normal(size=(500, 4))
    trainer = fl.Trainer(fl.MLP([4, 32, 32, 1], activation), optimizer)
    trainer.fit(X, np.sin(X[:, 0]) + X[:, 1] * X[:, 2], steps=1000, batch_size=batch_size, shuffle=True)
    assert diagnose(trainer) == []


def test_healthy_loops_of_ones_own():
    assert diagnose(bigram_loop(zero=True, batch_size=8)) == []
    assert diagnose(bigram_loop(zero=True, optimizer="sgd", lr=0.5, batch_size=8)) == []
    for lr in (0.01, 0.05, 0.1):
        assert diagnose(line_loop(zero=True, lr=lr)) == []


def test_a_run_that_goes_on_is_not_called_stalled():
    trainer = run(steps=3000, batch_size=64, schedule=fl.schedules.constant)
    trainer.fit(DOCS, steps=FLAT_STEPS, batch_size=1024)
    assert trainer.history.start_step == 3000
    assert diagnose(trainer) == []


STEP = np.arange(400)
NOISE = np.random.default_rng(0).normal(size=400)
FALLING = 3.3 - STEP / 400


@pytest.mark.parametrize("loss, norm", [
    (FALLING, (1 + STEP) * (1.0 + 0.2 * NOISE).clip(0.5)),     # grows like a sum, but is noisy as single gradients are
    (FALLING, 1.0 + np.minimum(STEP, 30)),                     # grows while the weights are small, then levels off
    (FALLING, 1.0 + STEP / 40),                                # grows tenfold
    (NOISE**2, np.abs(NOISE) + 1.0 * (STEP > 0)),              # a noisy loss comes back and falls at every other step
    (np.where(STEP, NOISE**2, 0.01), np.where(STEP, np.abs(NOISE), 0.1)),     # the first example happened to be easy
    (1.0 + 0.05 * STEP / 400, 1.0 + 0 * STEP),                    # up by 5 %: not down, but no divergence either
], ids=range(6))
def test_what_only_looks_like_a_symptom(loss, norm):
    history = fl.History()
    history.extend(loss=loss, lr=0.1 + 0 * loss, norm=norm, clipped=loss > 1e9, seconds=loss)
    assert not names(diagnose(history)) & {"never_zeroed", "lr_too_large", "diverging", "exploding_gradients"}


def test_a_run_that_goes_on_may_begin_anywhere():
    history = fl.History(start_step=1000)
    loss = np.where(STEP, 3.0, 0.1)
    history.extend(loss=loss, lr=0.1 + 0 * loss, norm=40 * loss, clipped=loss > 1e9, seconds=loss)
    assert diagnose(history) == []


# --- arguments and results

@pytest.mark.parametrize("recorded", [(), ("lr",), ("norm",)])
def test_columns_that_were_not_recorded(recorded):
    assert diagnose(line_loop(zero=True, recorded=recorded)) == []
    assert names(diagnose(line_loop(zero=True, lr=0.25, recorded=recorded))) >= {"diverging"}
    assert names(diagnose(line_loop(zero=True, lr=1e-9, steps=300, recorded=recorded))) == {"stalled"}


@pytest.mark.parametrize("n", [0, 1, 2, 19, 20, 21, 22, 31])
def test_short_histories(n):
    history = fl.History()
    for i in range(n):
        history.append(3.0 / (i + 1), 0.1, 1.0)
    diagnosis = diagnose(history)
    assert diagnosis == []
    assert str(diagnosis) == f"nothing found in {n} steps (most symptoms need 20 steps to show, some 200)"


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-300, 1e300])
def test_constant_histories_raise_no_warnings(value):
    history = fl.History()
    for _ in range(300):
        history.append(value, 0.1, abs(value))
    diagnose(history)


def test_a_diagnosis_is_a_list_that_reads_well():
    diagnosis = diagnose(run())
    assert isinstance(diagnosis, list)
    assert diagnosis == []
    assert repr(diagnosis) == str(diagnosis) == "nothing found in 1,000 steps"
    diagnosis = diagnose(run(clip_norm=1e-3))
    assert isinstance(diagnosis, Diagnosis)
    assert isinstance(diagnosis[0], Finding)
    assert str(diagnosis).startswith("clipping: 100% of the steps were clipped to 0.001; the median norm before is ")
    assert str(diagnosis[0]) == str(diagnosis)


def test_a_trainer_without_a_history():
    with pytest.raises(ValueError, match="no history yet"):
        diagnose(fl.Trainer(fl.BigramLM(27), tokenizer=TOK))


@pytest.mark.parametrize("other", [fl.BigramLM(27), [2.0, 1.0], None, "run.npz"], ids=repr)
def test_what_is_neither_a_history_nor_a_trainer_is_refused(other):
    with pytest.raises(TypeError, match=r"run = .* must be a History, as fit returns it, or a Trainer after fit"):
        diagnose(other)


def test_it_changes_nothing():
    trainer = run(steps=300)
    before = trainer.model.params.flat.copy(), trainer.history.to_json(), str(trainer.optimizer.state_dict())
    diagnose(trainer)
    assert trainer.model.params.flat.tobytes() == before[0].tobytes()
    assert (trainer.history.to_json(), str(trainer.optimizer.state_dict())) == before[1:]
