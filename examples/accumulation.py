"""Gradient accumulation: four micro-batches of 8 documents give bitwise the same gradient as one batch of 32.

(A batch of 256 tokens or more is summed in several parts, so the gradients may then differ by round-off.)
"""

import numpy as np

import fastloop as fl

docs = fl.load_docs()
tok = fl.CharTokenizer(docs)


def train(batch_size, grad_accum):
    model = fl.BigramLM(tok.vocab_size)
    trainer = fl.Trainer(model, fl.Adam(lr=0.01), tokenizer=tok, grad_accum=grad_accum)
    trainer.fit(docs, steps=100, batch_size=batch_size)
    return model.params.flat


large, small = train(batch_size=32, grad_accum=1), train(batch_size=8, grad_accum=4)
print("the same parameters, bit for bit:", np.array_equal(large, small))
