"""What models, and a Trainer of them, refuse, and how they present themselves."""

import numpy as np
import pytest

import fastloop as fl

DOCS = ["anna", "otto", "ab"]
TOK = fl.CharTokenizer(DOCS)
BIGRAM = fl.BigramLM(TOK.vocab_size)


def trainer(**options):
    return fl.Trainer(fl.BigramLM(TOK.vocab_size, n_embd=4), fl.SGD(lr=0.1), tokenizer=TOK, **options)


REFUSED = {
    "size 0": (lambda: fl.BigramLM(0), ValueError, "vocab_size = 0 must be an int of at least 1"),
    "size True": (lambda: fl.BigramLM(True), TypeError, "vocab_size = True must be an int of at least"),
    "size 2.0": (lambda: fl.GPT(3, n_layer=2.0), TypeError, "n_layer = 2.0 must be an int of at least"),
    "heads": (lambda: fl.GPT(3, n_embd=6, n_head=4), ValueError, "n_embd = 6 must be a multiple of n_head = 4"),
    "init_std -1": (lambda: fl.BigramLM(3, init_std=-1.0), ValueError, "init_std = -1.0"),
    "init_std inf": (lambda: fl.BigramLM(3, init_std=float("inf")), ValueError, "init_std = inf"),
    "init_std nan": (lambda: fl.BigramLM(3, init_std=float("nan")), ValueError, "init_std = nan"),
    "documents with y": (lambda: BIGRAM.make_data(DOCS, [1], TOK), TypeError, "learns from documents alone"),
    "no tokenizer": (lambda: fl.Trainer(BIGRAM).batch(DOCS), TypeError, "give its Trainer a tokenizer"),
    "ids to train on": (lambda: fl.BigramLM(3).make_data(DOCS, None, TOK), fl.DataError, "has 6 ids, the model only 3"),
    "ids to sample": (lambda: fl.BigramLM(3).generate(TOK), fl.DataError, "has 6 ids, the model only 3"),
    "temperature": (lambda: BIGRAM.generate(TOK, temperature=-0.5), ValueError, "temperature = -0.5"),
    "grad_accum 0": (lambda: trainer(grad_accum=0), ValueError, "grad_accum = 0"),
    "grad_accum True": (lambda: trainer(grad_accum=True), TypeError, "grad_accum = True"),
    "a number as schedule": (lambda: trainer(schedule=0.5), TypeError, "schedule must be a function"),
    "two kinds of clipping": (lambda: trainer(clip_norm=1.0, clip_value=1.0), ValueError, "give only one of them"),
    "clip_norm 0": (lambda: trainer(clip_norm=0.0), ValueError, "clip_norm = 0.0"),
    "clip_value inf": (lambda: trainer(clip_value=float("inf")), ValueError, "clip_value = inf"),
    "windows in order": (lambda: trainer().fit("annaotto" * 3, steps=1, shuffle=False), ValueError, "at random"),
    "an optimiser of arrays": (
        lambda: fl.Trainer(fl.BigramLM(3), fl.SGD(params=[np.zeros(2)])), ValueError, "made for arrays"
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case):
    call, error, words = REFUSED[case]
    with pytest.raises(error) as raised:
        call()
    assert words in str(raised.value)


def test_a_gradient_whose_square_overflows_is_caught_before_the_step():
    one = trainer()
    one.forward(one.batch(DOCS))
    one.backward()
    one.model.grads.flat[3] = 1e200
    before = one.model.params.flat.copy()
    with pytest.raises(fl.DivergenceError, match=r"the gradient norm is 1e\+200"):
        one.step()
    np.testing.assert_array_equal(one.model.params.flat, before)


def test_divergence_is_reported_even_where_the_schedule_has_no_length_yet():
    one = trainer(schedule=fl.schedules.linear())
    one.model.params["wte"][...] = np.nan
    with pytest.raises(fl.DivergenceError, match=r"the loss is nan \(lr nan") as raised:
        one.forward(one.batch(DOCS))
    assert np.isnan(raised.value.lr)


def test_probabilities_of_large_outputs_are_finite():
    model = fl.SoftmaxRegression(1, 3)
    model.params["layer0.weight"][:, 0] = [1.0, -1.0, 0.0]
    proba = model.predict_proba(np.array([[1e5], [-1e5], [0.0]]))
    np.testing.assert_array_equal(proba, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
