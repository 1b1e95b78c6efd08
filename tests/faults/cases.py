"""What the fault tests share: a small run of every model under every optimiser, and its state as bytes.

As a command, `python cases.py resume FOLDER MODEL OPTIMIZER`, it is the fresh process of test_resume.py.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import fastloop as fl

NIGHTLY = os.environ.get("FASTLOOP_NIGHTLY") == "1"     # tests/nightly.sh: everything, however long it takes

STEPS = 20
DOCS = fl.load_docs()[:30]
TEXT = "\n".join(DOCS)
TOK = fl.CharTokenizer([TEXT])
RNG = np.random.default_rng(7)
X = RNG.normal(size=(30, 3))
TARGETS, CLASSES = X[:, :2] * X[:, 1:], RNG.integers(3, size=30)


class Own(fl.Model):
    """A user's own model, in NumPy: tanh between two layers without biases, the squared error."""

    def __init__(self, dtype="float64"):
        super().__init__({"first": (3, 9), "second": (9, 2)}, seed=1, init_std=0.5, dtype=dtype)

    def forward(self, X, y, weights):
        self.X, self.h = X, np.tanh(X @ self.params["first"])
        d = self.h @ self.params["second"] - y
        self.d = 2.0 * weights[:, None] * d
        return weights @ (d * d).sum(axis=1)

    def backward(self):
        self.grads["second"] += self.h.T @ self.d
        self.grads["first"] += self.X.T @ (self.d @ self.params["second"].T * (1.0 - self.h**2))


# Name -> (model, data and y).  30 examples in steps of 4 or 6: most steps are in the middle of an epoch.
FLOAT64 = {
    "bigram": (lambda **dtype: fl.BigramLM(TOK.vocab_size, n_embd=5, **dtype), (DOCS,)),
    "bigram-text": (lambda **dtype: fl.BigramLM(TOK.vocab_size, n_embd=4, block_size=6, **dtype), (TEXT,)),
    "gpt": (lambda **dtype: fl.GPT(TOK.vocab_size, n_embd=10, n_head=2, n_layer=2, block_size=12, **dtype), (DOCS,)),
    "gpt-text": (lambda **dtype: fl.GPT(TOK.vocab_size, n_embd=8, n_head=2, block_size=12, **dtype), (TEXT,)),
    "linear": (lambda **dtype: fl.LinearRegression(3, 2, **dtype), (X, TARGETS)),
    "softmax": (lambda **dtype: fl.SoftmaxRegression(3, 3, **dtype), (X, CLASSES)),
    "mlp": (lambda **dtype: fl.MLP([3, 9, 2], "tanh", **dtype), (X, TARGETS)),
    "own": (lambda **dtype: Own(**dtype), (X, TARGETS)),
}
FLOAT32 = {
    f"float32-{name}": (lambda make=make: make(dtype="float32"), data) for name, (make, data) in FLOAT64.items()
}
MODELS = {**FLOAT64, **FLOAT32}
OPTIMIZERS = {
    "sgd": lambda names: fl.SGD(lr=0.1),
    "momentum": lambda names: fl.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda names: fl.Adam(lr=0.01, weight_decay=0.01),
    "adamw": lambda names: fl.AdamW(lr=0.01, no_decay=names[1:2]),
}


def make(model, optimizer="adam", **options):
    """A new trainer of these names."""
    model = MODELS[model][0]()
    tokenizer = TOK if isinstance(model, fl.models.LanguageModel) else None
    options = {"schedule": fl.schedules.warmup(3, fl.schedules.linear()), **options}
    return fl.Trainer(model, OPTIMIZERS[optimizer](list(model.params)), tokenizer=tokenizer, **options)


def load(path, model):
    """The trainer of a checkpoint of that model."""
    return fl.Trainer.load(path, model=MODELS[model][0]() if model.endswith("own") else None)


def data(model):
    """The arguments data and y of fit, and validation data."""
    everything = MODELS[model][1]
    some = tuple(part[:20] for part in everything)
    return everything, some[0] if len(some) == 1 else some


def state(trainer):
    """Everything that a run is made of, as a hash: parameters, moments, counts, history; not the time it took."""
    h = hashlib.sha256(trainer.model.params.flat.tobytes())
    for slot in trainer.optimizer.slots:
        h.update(trainer.optimizer.flats[slot].flat.tobytes())
    history = trainer.history
    for column in ("loss", "lr", "norm", "clipped"):
        h.update(getattr(history, column).tobytes())
    run = trainer.last_fit
    best = None if run.best_params is None else run.best_params.tobytes()
    h.update(repr((trainer.steps, trainer.optimizer.t, history.evaluations, history.predictions, best)).encode())
    h.update(repr((run.best_loss, run.best_step, run.stale)).encode())
    return h.hexdigest()


def python(*arguments, timeout=120, **options):
    """Run another Python on these arguments."""
    options = {"capture_output": True, "text": True, **options}
    return subprocess.run([sys.executable, *map(str, arguments)], timeout=timeout, **options)


def wait_for(condition, seconds=60):
    """Wait until it is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def resume(folder, model, optimizer):
    """Go on from each checkpoint k.npz of the folder; print k and the state at the end."""
    everything, validation = data(model)
    for path in sorted(Path(folder).glob("*.npz")):
        trainer = load(path, model)
        trainer.resume(*everything, validation=validation)
        print(path.stem, state(trainer))


if __name__ == "__main__":
    resume(*sys.argv[2:])
