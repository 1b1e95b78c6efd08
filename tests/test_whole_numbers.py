"""Whole numbers in the public API: Python's and NumPy's are taken everywhere, all else is refused in the same words."""

import numpy as np
import pytest

import fastloop as fl
from fastloop import kernels, schedules

DOCS = ["anna", "otto", "hannah", "bob"]
TOK = fl.CharTokenizer(DOCS)
GPT = fl.GPT(TOK.vocab_size, n_embd=4, n_head=2, block_size=8)
HISTORY = fl.History()
HISTORY.append(1.0)


def trainer(**options):
    return fl.Trainer(fl.BigramLM(TOK.vocab_size, n_embd=4, block_size=4), tokenizer=TOK, **options)


def fit(**options):
    return trainer().fit(DOCS, **{"steps": 2, "validation": DOCS, **options})


def threads(n):
    before = fl.get_num_threads()
    try:
        fl.set_num_threads(n)
    finally:
        fl.set_num_threads(before)


def adam_step(t):
    kernels.adam_step(*np.ones((4, 3)), lr=0.1, beta1=0.9, beta2=0.9, eps=1e-8, t=t)


def optimizer_t(n):
    fl.Adam([np.ones(3)]).t = n


def gradcheck(**options):
    fl.gradcheck(lambda p: (p * p).sum(), np.ones(3), 2.0 * np.ones(3), **options)


# What takes a whole number n, by the number's name in a message.
CALLS = {
    "n": threads,
    "t": adam_step,
    "samples": lambda n: gradcheck(samples=n),
    "seed of gradcheck": lambda n: gradcheck(seed=n),
    "seed of split_docs": lambda n: fl.split_docs(DOCS, 0.5, n),
    "seed of a model": lambda n: fl.BigramLM(3, seed=n),
    "seed of generate": lambda n: GPT.generate(TOK, seed=n),
    "seed of fit": lambda n: fit(seed=n, shuffle=True),
    "block_size": lambda n: fl.bigram_baseline(DOCS, tokenizer=TOK, block_size=n),
    "window": lambda n: HISTORY.smoothed(n),
    "window of a mean": lambda n: HISTORY.mean_loss(n),
    "width": lambda n: HISTORY.sparkline(n),
    "vocab_size": lambda n: fl.GPT(n),
    "n_embd": lambda n: fl.GPT(3, n_embd=n, n_head=1),
    "n_head": lambda n: fl.GPT(3, n_head=n),
    "n_layer": lambda n: fl.GPT(3, n_layer=n),
    "block_size of a model": lambda n: fl.GPT(3, block_size=n),
    "widths[1]": lambda n: fl.MLP([1, n, 1]),
    "n_in": lambda n: fl.LinearRegression(n),
    "n_out": lambda n: fl.LinearRegression(1, n),
    "n_classes": lambda n: fl.SoftmaxRegression(1, n),
    "n of generate": lambda n: GPT.generate(TOK, n),
    "top_k": lambda n: GPT.generate(TOK, top_k=n),
    "length": lambda n: GPT.generate(TOK, length=n),
    "grad_accum": lambda n: trainer(grad_accum=n),
    "batch_size": lambda n: fit(batch_size=n),
    "steps": lambda n: fit(steps=n),
    "epochs": lambda n: fit(steps=None, epochs=n),
    "eval_every": lambda n: fit(eval_every=n),
    "patience": lambda n: fit(patience=n),
    "log_every": lambda n: fit(log_every=n),
    "save_every": lambda n: fit(save_every=n),
    "steps of lr_find": lambda n: fl.lr_find(trainer(), DOCS, steps=n),
    "steps of linear": lambda n: schedules.linear(n),
    "every": lambda n: schedules.step_decay(n),
    "timescale": lambda n: schedules.inverse_sqrt(n),
    "steps of warmup": lambda n: schedules.warmup(n),
    "boundaries[0]": lambda n: schedules.join([schedules.linear(), schedules.cosine()], [n]),
}
WHOLE = [3, np.int8(3), np.int64(3), np.uint64(3), np.array(3)]
OTHERS = [2.5, np.float64(2.5), np.array(2.5), True, np.True_, "3", [3], 1j]


@pytest.mark.parametrize("name", CALLS)
def test_a_whole_number_is_pythons_or_numpys(name):
    call = CALLS[name]
    for n in WHOLE:
        call(2 if name == "n_head" else n)


@pytest.mark.parametrize("name", CALLS)
def test_anything_else_is_refused_with_the_name_and_the_value(name):
    for other in OTHERS:
        with pytest.raises(TypeError) as caught:
            CALLS[name](other)
        assert str(caught.value).startswith(f"{name.partition(' of ')[0]} = {other!r} must be an int of at least ")


@pytest.mark.parametrize("name", CALLS)
def test_a_negative_number_is_refused_in_the_same_words(name):
    with pytest.raises(ValueError, match=r" = -1 must be an int of at least \d+$"):
        CALLS[name](-1)


def test_a_step_count_may_come_in_a_float_as_torch_keeps_it():
    for n in (*WHOLE, 3.0, np.float32(3.0)):
        optimizer_t(n)
    with pytest.raises(TypeError, match=r"t = 2\.5 must be an int of at least 0"):
        optimizer_t(2.5)
