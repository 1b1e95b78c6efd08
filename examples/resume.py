"""Stop a run anywhere, go on from its checkpoint, and get, bit for bit, the run that was never stopped."""

import os
import tempfile

import numpy as np

import fastloop as fl

docs = fl.load_docs()
tok = fl.CharTokenizer(docs)


def make():
    model = fl.BigramLM(tok.vocab_size)
    return fl.Trainer(model, fl.Adam(lr=0.01), tokenizer=tok, schedule=fl.schedules.linear())


class StopAfter:
    def __init__(self, steps):
        self.steps = steps

    def on_step(self, trainer):
        if trainer.steps == self.steps:
            trainer.stop("power cut")


whole = make()
whole.fit(docs, steps=500, shuffle=True)

with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "run.npz")
    history = make().fit(docs, steps=500, shuffle=True, save=path, callbacks=[StopAfter(123)])
    print(f"stopped: {history.stop_reason}, after {len(history)} steps")
    resumed = fl.Trainer.load(path)
    history = resumed.resume(docs)
print(f"resumed: {len(history)} steps in all")
print("the same parameters, bit for bit:", np.array_equal(whole.model.params.flat, resumed.model.params.flat))
