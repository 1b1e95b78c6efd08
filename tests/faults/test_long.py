"""20,000 steps in which some characters and positions no longer occur: no subnormal number, no slow step."""

import time

import numpy as np
import pytest

import fastloop as fl

STEPS = 20_000
DOCS = fl.load_docs()
TOK = fl.CharTokenizer(DOCS)
FEW = [doc for doc in DOCS if not set(doc) & set("aeijkz")]     # without 6 of 26 characters and the last positions
OPTIMIZERS = {
    "adam": lambda: fl.Adam(lr=1e-3, betas=(0.85, 0.99)),
    "adam-defaults": lambda: fl.Adam(lr=1e-3),
    "adamw": lambda: fl.AdamW(lr=1e-3, weight_decay=0.1),
    "momentum": lambda: fl.SGD(lr=1e-3, momentum=0.9),
}


class Clock:
    """The processor time at every log; other processes do not disturb it much."""

    def __init__(self):
        self.seen = []

    def on_log(self, trainer):
        self.seen.append(time.thread_time())


def subnormal(array):
    return ((array != 0.0) & (np.abs(array) < np.finfo(array.dtype).tiny)).sum()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["bigram", "gpt"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_dead_rows_leave_no_subnormal_number_and_no_slow_step(model, optimizer, dtype):
    # No name has more than 11 characters, so positions of this gpt never occur either.
    size, more = TOK.vocab_size, {"dtype": dtype}
    model = fl.BigramLM(size, **more) if model == "bigram" else fl.GPT(size, block_size=24, **more)
    trainer = fl.Trainer(model, OPTIMIZERS[optimizer](), tokenizer=TOK)
    trainer.fit(DOCS, steps=200)
    clock = Clock()
    trainer.fit(FEW, steps=STEPS, log_every=100, callbacks=[clock])
    seconds = np.diff(clock.seen)
    ratio = np.median(seconds[-10:]) / np.median(seconds[1:11])
    print(f"{model!r} {optimizer}: last 1,000 steps / first 1,000: {ratio:.2f}")
    for params in (model.params, *trainer.optimizer.flats.values()):
        assert subnormal(params.flat) == 0
    assert not trainer.optimizer.flats[trainer.optimizer.slots[0]]["wte"][TOK.encode("z")[0]].any()     # it did fade
    assert ratio < 3.0      # ten times, where moments turn subnormal; the figure is in RELIABILITY.md
