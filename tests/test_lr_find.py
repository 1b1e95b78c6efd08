"""lr_find: what it measures, what it suggests, and that it leaves no trace."""

import hashlib
import math
from types import SimpleNamespace

import numpy as np
import pytest

import fastloop as fl
from fastloop.lr_find import SmoothedLoss, steepest

DOCS = fl.load_docs()[:200]
TOK = fl.CharTokenizer(DOCS)
X = np.arange(1.0, 7.0)[:, None]


def language(optimizer=None, **options):
    return fl.Trainer(fl.BigramLM(TOK.vocab_size), optimizer or fl.Adam(), tokenizer=TOK, **options)


def line(lr=1e-3):
    return fl.Trainer(fl.LinearRegression(1), fl.SGD(lr=lr))


def digest(trainer):
    """A hash of all numbers but the gradients, and the identity of every attribute."""
    state = trainer.optimizer.state_dict()["state"]
    parts = [trainer.model.params.flat, *(entry[slot] for entry in state.values() for slot in trainer.optimizer.slots)]
    counts = f"{trainer.steps} {trainer.optimizer.t} {trainer.optimizer.lr}"
    names = {name: id(value) for name, value in vars(trainer).items() if name not in ("_stage", "_micro")}
    return hashlib.sha256(b"".join(a.tobytes() for a in parts) + counts.encode()).hexdigest(), names


@pytest.mark.parametrize("kind", [fl.Adam, fl.AdamW, fl.SGD, lambda: fl.SGD(momentum=0.9)])
@pytest.mark.parametrize("before", ["nothing", "fit", "by hand"])
@pytest.mark.parametrize("lr_max", [0.1, 1e4])
def test_it_leaves_no_trace(kind, before, lr_max):
    def prepared():
        trainer = language(kind(), schedule=fl.schedules.warmup(3, fl.schedules.linear()), clip_norm=1.0, grad_accum=2)
        if before == "fit":
            trainer.fit(DOCS, steps=7)
        if before == "by hand":
            trainer.schedule = fl.schedules.constant()
            trainer.forward(trainer.batch(DOCS[:5]))
            trainer.backward()
            trainer.step()
        return trainer

    trainer, other = prepared(), prepared()
    seen = digest(trainer)
    found = fl.lr_find(trainer, DOCS, steps=30, lr_max=lr_max)
    assert digest(trainer) == seen
    assert not trainer.model.grads.flat.any()
    assert len(found.lrs)
    trainer.fit(DOCS, steps=10)
    other.fit(DOCS, steps=10)
    assert trainer.model.params.flat.tobytes() == other.model.params.flat.tobytes()
    assert np.array_equal(trainer.history.loss, other.history.loss)


@pytest.mark.parametrize("lr_min, lr_max, steps, reason", [
    (1e-6, 1e-3, 100, "finished"), (1e-6, 1.0, 100, "blew up"), (1e-3, 1e307, 3, "diverged"),
])
def test_how_it_ends(lr_min, lr_max, steps, reason):
    trainer = line()
    seen = digest(trainer)
    found = fl.lr_find(trainer, X, 2.0 * X, batch_size=6, lr_min=lr_min, lr_max=lr_max, steps=steps)
    assert found.stop_reason == reason
    assert digest(trainer) == seen
    assert (len(found.lrs) == 100) == (reason == "finished")
    assert len(found.lrs) == len(found.losses) == len(found.raw_losses)
    assert np.isfinite(found.raw_losses).all()
    if reason == "blew up":
        assert found.losses[-1] > 4.0 * found.losses.min()
        assert (found.losses[:-1] <= 4.0 * np.minimum.accumulate(found.losses[:-1])).all()


def test_an_error_on_the_way_leaves_no_trace(monkeypatch):
    trainer = language()
    seen, advance = digest(trainer), fl.History.advance

    def break_down(history, count):
        if len(history) == 5:
            raise KeyboardInterrupt
        advance(history, count)

    monkeypatch.setattr(fl.History, "advance", break_down)
    with pytest.raises(KeyboardInterrupt):
        fl.lr_find(trainer, DOCS, steps=20)
    assert digest(trainer) == seen
    monkeypatch.undo()
    with pytest.raises(fl.DataError):
        fl.lr_find(trainer, ["\u0416"])
    assert digest(trainer) == seen


def test_lrs_grow_by_a_constant_ratio_and_losses_are_those_of_fit():
    trainer = language(fl.SGD(lr=123.0), schedule=lambda step: 0.5)
    trainer.steps = 7       # as if it had trained before
    found = fl.lr_find(trainer, DOCS, lr_min=1e-3, lr_max=1e-1, steps=5, batch_size=4, smoothing=0.5)
    np.testing.assert_allclose(found.lrs, [1e-3, 10**-2.5, 1e-2, 10**-1.5, 1e-1], rtol=1e-12)
    twin = language(fl.SGD(lr=1.0), schedule=lambda step: found.lrs[step])
    assert np.array_equal(twin.fit(DOCS, steps=5, batch_size=4).loss, found.raw_losses)
    # The exponential mean, from its definition: weights 1/2, 1/4, ... back from the present, divided by their sum.
    for k in range(5):
        weights = 0.5 ** np.arange(k, -1, -1)
        assert found.losses[k] == pytest.approx(weights @ found.raw_losses[: k + 1] / weights.sum(), rel=1e-12)


def test_it_blows_up_past_four_times_the_lowest():
    class Trainer:
        reason = None

        def stop(self, reason):
            self.reason = reason

    trainer, mean = Trainer(), SmoothedLoss(0.0)
    for loss, reason in [(10.0, None), (2.0, None), (7.99, None), (8.0, None), (8.01, "blew up")]:
        trainer.history = SimpleNamespace(loss=[loss])
        mean.on_step(trainer)
        assert trainer.reason == reason


def test_the_suggestion_is_the_steepest_point():
    lrs = 10.0 ** np.arange(-6, 2)
    losses = np.array([9.0, 3.0, 3.0, 2.9, 2.0, 1.4, 1.3, 0.1])
    assert steepest(lrs, losses, 1) == 10.0         # a one-sided slope at the end
    assert steepest(lrs[:-1], losses[:-1], 1) == 1e-2
    assert steepest(lrs[:-1], losses[:-1], 0) == 1e-6
    assert steepest(lrs, losses[::-1], 0) is None   # only rises
    assert steepest(lrs, np.array([5.0, 4.9, 5.0, 9.0, 8.0, 2.0, 9.0, 9.0]), 0) == 1e-2
    assert steepest(lrs, np.array([5.0, 4.8, 4.7, 9.0, 8.0, 6.0, 5.0, 5.0]), 0) == 1e-6     # not past the lowest
    assert steepest(lrs[:1], losses[:1], 0) is None


def test_the_suggestion_trains():
    """On a line the largest stable lr is known: 2 over the largest curvature."""
    trainer = line()
    found = fl.lr_find(trainer, X, 2.0 * X, batch_size=6)
    A = np.hstack([X, np.ones_like(X)])
    limit = 2.0 / np.linalg.eigvalsh(2.0 * A.T @ A / 6).max()
    assert limit / 100 < found.suggestion < limit
    trainer.optimizer.lr = found.suggestion
    history = trainer.fit(X, 2.0 * X, steps=200, batch_size=6)
    assert history.loss[-1] < 1e-2 * history.loss[0]
    assert f"suggestion {found.suggestion:.3g}" in repr(found)


def test_no_suggestion_where_the_loss_never_falls():
    trainer = line()
    trainer.model.params.flat[:] = 0.0
    found = fl.lr_find(trainer, X, 0.0 * X, steps=20, batch_size=6)
    assert found.suggestion is None
    assert repr(found).endswith("finished: no suggestion>")


def test_diverging_at_once():
    trainer = line()
    trainer.model.params.flat[:] = 1e200
    found = fl.lr_find(trainer, X, X, batch_size=6)
    assert (len(found.lrs), found.suggestion, found.stop_reason) == (0, None, "diverged")
    assert repr(found) == "<LRFinder of 0 steps, diverged: no suggestion>"


@pytest.mark.parametrize("options, error, words", [
    ({"lr_min": 0.0}, ValueError, r"lr_min = 0.0 is outside \(0"),
    ({"lr_min": 0.1, "lr_max": 0.1}, ValueError, r"lr_max = 0.1 is outside \(0.1"),
    ({"lr_max": math.inf}, ValueError, "lr_max = inf is outside"),
    ({"lr_max": "1"}, TypeError, "lr_max = '1' is a str"),
    ({"smoothing": 1.0}, ValueError, r"smoothing = 1.0 is outside \[0"),
    ({"steps": 2}, ValueError, "steps = 2 must be an int of at least 3"),
    ({"steps": 10.0}, TypeError, "steps = 10.0 must be an int of at least 3"),
    ({"batch_size": 0}, ValueError, "batch_size = 0"),
])
def test_wrong_arguments(options, error, words):
    trainer = language()
    seen = digest(trainer)
    with pytest.raises(error, match=f"^{words}"):
        fl.lr_find(trainer, DOCS, **options)
    assert digest(trainer) == seen


def test_in_the_middle_of_a_step_it_is_refused_and_the_gradients_stay():
    trainer = language()
    trainer.forward(trainer.batch(DOCS[:3]))
    trainer.backward()
    before = trainer.model.grads.flat.copy()
    with pytest.raises(fl.OrderError, match=r"^lr_find\(\) was called after backward\(\)"):
        fl.lr_find(trainer, DOCS)
    assert np.array_equal(trainer.model.grads.flat, before)
    assert before.any()


def test_a_state_that_could_not_be_restored_is_refused_before_the_test():
    trainer = language()
    trainer.fit(DOCS, steps=3)
    trainer.optimizer.flats["exp_avg"].flat[5] = np.nan
    params = trainer.model.params.flat.copy()
    with pytest.raises(ValueError, match="exp_avg of tensor 0 is not finite"):
        fl.lr_find(trainer, DOCS, steps=20)
    assert trainer.model.params.flat.tobytes() == params.tobytes()
    assert (trainer.optimizer.t, trainer.optimizer.lr) == (3, language().optimizer.lr)


def test_a_signal_that_interrupts_the_restoring_leaves_no_trace(monkeypatch):
    trainer = language()
    trainer.fit(DOCS, steps=3)
    seen, load, calls = digest(trainer), fl.Adam.load_state_dict, []

    def interrupted(optimizer, state):
        calls.append(state)
        if len(calls) == 2:
            raise KeyboardInterrupt
        load(optimizer, state)

    monkeypatch.setattr(fl.Adam, "load_state_dict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fl.lr_find(trainer, DOCS, steps=20)
    assert digest(trainer) == seen


def test_a_model_in_the_trainers_place_is_named():
    with pytest.raises(TypeError, match=r"trainer = BigramLM\(.*\) must be a Trainer: Trainer\(model, optimizer\)"):
        fl.lr_find(fl.BigramLM(27), ["anna"])
