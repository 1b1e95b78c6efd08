"""A user's program, as the README has it, in a project that checks its own code strictly; test_types.py does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastloop as fl

Floats = NDArray[np.float64]


class StopAt:
    """A callback."""

    every = 10

    def __init__(self, loss: float) -> None:
        self.loss = loss

    def on_step(self, trainer: fl.Trainer) -> None:
        if trainer.history.loss[-1] < self.loss:
            trainer.stop("low enough")

    def on_evaluate(self, trainer: fl.Trainer, step: int, loss: float) -> None:
        print(step, loss, trainer.lr)


def by_hand(docs: list[str]) -> list[float]:
    tok = fl.CharTokenizer(docs)
    model = fl.BigramLM(tok.vocab_size, n_embd=np.int64(16), block_size=8, seed=42)
    opt = fl.Adam(lr=0.01, betas=(0.85, 0.99), eps=1e-8)
    trainer = fl.Trainer(model, opt, tokenizer=tok, schedule=fl.schedules.linear(steps=1000), clip_norm=1.0)
    losses: list[float] = []
    for first in range(0, len(docs), 32):
        batch = trainer.batch(docs[first : first + 32])
        trainer.zero_grad()
        loss: float = trainer.forward(batch)
        trainer.backward()
        gradient: Floats = model.grads["wte"]
        norm: float = trainer.clip_grad_norm(1.0)
        lr: float = trainer.step()
        losses.append(loss + norm + lr + float(gradient.sum()))
    return losses


def with_fit(docs: list[str], folder: Path) -> fl.History:
    train, val = fl.split_docs(docs, 0.1, seed=1)
    tok = fl.CharTokenizer(docs)
    model = fl.GPT(tok.vocab_size, n_embd=16, n_head=4, n_layer=1, block_size=16)
    schedule: Callable[[int], float] = fl.schedules.warmup(100, fl.schedules.cosine())
    trainer = fl.Trainer(model, fl.AdamW(no_decay=["wte"]), tokenizer=tok, schedule=schedule)
    found = fl.lr_find(trainer, docs, steps=50)
    if found.suggestion is not None:
        trainer.optimizer.lr = found.suggestion
    history = trainer.fit(
        train, steps=1000, batch_size=16, validation=val, patience=3, save=folder / "run.npz",
        callbacks=[StopAt(2.0), fl.callbacks.Progress(), fl.callbacks.JsonLog(folder / "run.jsonl")],
    )
    loss: Floats = history.loss
    step, best = min(history.evaluations, key=lambda evaluation: evaluation[1])
    print(loss[-1], history.mean_loss(100), step, best, history.clipped.sum(), history.sparkline(), trainer.best_loss)
    print(fl.bigram_baseline(train, val, tokenizer=tok, block_size=16), trainer.evaluate(val))
    text: str = history.to_json()
    history.to_csv(folder / "run.csv")
    history.plot(folder / "run.png").savefig("again.png")
    for finding in fl.diagnose(trainer):
        print(finding.name, finding.advice)
    names: list[str] = model.generate(tok, n=5, temperature=0.8, seed=1, prompt="an", top_k=5)
    scores: Floats = model.logits([tok.bos, *tok.encode("ann")])
    each: list[Floats] = model.probabilities(tok, docs[:3])
    print(text, names, scores[-1], each[0].shape)
    model.save_safetensors(folder / "gpt.safetensors", tok)
    again: fl.GPT = fl.GPT.from_safetensors("gpt.safetensors")
    again.params["wte"] = model.params["wte"]
    return fl.Trainer.load(folder / "run.npz").resume(docs)


def own_loop() -> None:
    w, b = np.ones(3), np.zeros(1)
    gw, gb = 2.0 * w, np.ones(1)
    opt = fl.SGD(params=[w, b], lr=1e-3, momentum=0.9)
    opt.step([gw, gb])
    state: dict[str, Any] = opt.state_dict()
    opt.load_state_dict(state)
    norm: float = fl.kernels.grad_norm(gw)
    history = fl.History()
    history.append(1.0, lr=opt.lr, norm=norm)
    check = fl.gradcheck(lambda p: (p * p).sum(), w, 2.0 * w)
    print(check.ok, check.max_error, opt.t)


def over_arrays() -> Floats:
    X = [1.0, 2.0, 3.0, 4.0]
    model = fl.LinearRegression(1)
    fl.Trainer(model, fl.SGD(lr=0.01)).fit(X, [2 * x for x in X], steps=2000, batch_size=4)
    classes = fl.MLP([2, 16, 3], activation="tanh", loss="cross_entropy")
    classes.classes = ["no", "perhaps", "yes"]
    rows = np.zeros((3, 2))
    trainer = fl.Trainer(classes)
    trainer.fit((rows, ["no", "perhaps", "yes"]), epochs=3, validation=0.3)
    fl.gradcheck(classes, trainer.batch(rows, ["no", "perhaps", "yes"]))
    print(model.predict([10.0]), classes.predict(rows))
    return classes.predict_proba(rows)


def in_float32() -> NDArray[np.float32]:
    model = fl.MLP([2, 16, 1], dtype="float32")
    trainer = fl.Trainer(model, fl.Adam())
    trainer.fit(np.zeros((3, 2)), np.zeros(3), epochs=1)
    gradient: NDArray[np.float32] = model.grads["layer0.weight"]
    wide: fl.MLP = model.astype(np.float64)
    params = fl.Params({"w": (3,)}, dtype=np.float32)
    fl.SGD(params=[params["w"]]).step([np.ones(3, np.float32)])
    print(wide.dtype.name, model.dtype == np.float32, gradient.sum())
    return model.outputs([[1.0, 2.0]])


def settings() -> None:
    fl.set_num_threads(2)
    fl.set_num_threads(np.int64(fl.get_num_threads()))
    fl.show_config()
    try:
        with_fit(fl.load_docs(), Path("."))
    except fl.DivergenceError as error:
        print(error.step, error.lr, error.last_norms)
    except (fl.CheckpointError, fl.DataError, fl.OrderError) as error:
        print(error)
