"""np.seterr(all="raise"), as a user may set it, breaks nothing: underflow and overflow inside are intended."""

import numpy as np
import pytest

import fastloop as fl

DOCS = fl.load_docs()[:300]
TOK = fl.CharTokenizer(DOCS)
MODELS = {
    "bigram": lambda: fl.BigramLM(TOK.vocab_size, n_embd=8), "gpt": lambda: fl.GPT(TOK.vocab_size, n_embd=8, n_head=2),
}
language_models = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(autouse=True)
def strict():
    with np.errstate(all="raise"):
        yield


@language_models
def test_training_examining_and_generating(model):
    model = MODELS[model]()
    trainer = fl.Trainer(model, fl.Adam(lr=0.05), tokenizer=TOK, schedule=fl.schedules.linear())
    history = trainer.fit(DOCS, steps=200, validation=DOCS[:20], eval_every=50, tol=1e-9, patience=50)
    assert np.isfinite(history.smoothed(10)).all()
    assert len(history.sparkline()) == 60
    str(fl.diagnose(trainer))
    assert fl.gradcheck(model, trainer.batch(DOCS[:2])).ok
    assert fl.lr_find(trainer, DOCS, lr_max=100.0).stop_reason in ("finished", "blew up", "diverged")
    fl.bigram_baseline(DOCS, tokenizer=TOK, block_size=8)
    model.params["lm_head"][:] *= 1e4       # probabilities of 1, and of less than the smallest number
    for options in ({"temperature": 0.05}, {"temperature": 1e-3, "top_k": 5, "top_p": 0.9}, {"temperature": 1e-308}):
        assert len(model.generate(TOK, 20, seed=1, **options)) == 20
    for p in model.probabilities(TOK, DOCS[:5]):
        np.testing.assert_allclose(p.sum(axis=1), 1.0)
    trainer.evaluate(DOCS[:30])


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_probabilities_of_0_and_1(hidden):
    rng = np.random.default_rng(0)
    X = 100.0 * rng.normal(size=(200, 5))
    y = (X[:, 0] > 0.0).astype(int)
    model = fl.MLP([5, *hidden, 2], loss="cross_entropy")
    trainer = fl.Trainer(model, fl.AdamW(lr=0.1))
    trainer.fit(X, y, epochs=20, batch_size=10, shuffle=True, tol=1e-6)
    model.params.flat[:] *= 30.0
    p = model.predict_proba(X)
    assert p.min() == 0.0
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    trainer.evaluate(X, y)
    str(fl.diagnose(trainer))


def test_runs_that_diverge_and_factors_near_the_end_of_the_range():
    trainer = fl.Trainer(MODELS["bigram"](), fl.SGD(lr=1e200), tokenizer=TOK)
    with pytest.raises(fl.DivergenceError) as caught:
        trainer.fit(DOCS, steps=50)
    caught.value.history.smoothed(3)
    str(fl.diagnose(trainer))
    trainer = fl.Trainer(MODELS["bigram"](), tokenizer=TOK, schedule=lambda step: np.float64(1e-320))
    assert (trainer.fit(DOCS, steps=5).lr < 1e-320).all()


def test_a_check_by_complex_step_of_a_function_that_squares():
    p = np.array([1e-200, 0.5])
    assert fl.gradcheck(lambda p: ((p * p) ** 2).sum(), p, np.array([0.0, 0.5])).ok
