"""Mistakes that a type checker finds before the program runs: one in each line that says so, and in no other."""

import fastloop as fl

docs = fl.load_docs()
tok = fl.CharTokenizer(docs)
model = fl.BigramLM(tok.vocab_size)
trainer = fl.Trainer(model, tokenizer=tok)

fl.BigramLM("27")                                               # mistake
fl.GPT(tok.vocab_size, n_heads=4)                               # mistake
fl.MLP([2, 16, 1], activation="gelu")                           # mistake
fl.MLP([2, 16, 1], loss="mae")                                  # mistake
fl.Adam(lr="0.01")                                              # mistake
fl.Adam(0.01)                                                   # mistake
fl.Trainer(fl.Adam(), model)                                    # mistake
fl.Trainer(model, schedule="linear")                            # mistake
fl.Trainer(model, clip_norm="1")                                # mistake
trainer.fit(docs, steps="1000")                                 # mistake
trainer.fit(docs, 1000)                                         # no mistake: the second is y, which arrays may have
trainer.fit(docs, callbacks=fl.callbacks.Progress())            # mistake
trainer.clip_grad_norm("1")                                     # mistake
trainer.save(1)                                                 # mistake
trainer.model = model                                           # mistake
losses = trainer.losses                                         # mistake
model.generate(tok, 5, top_k=0.5)                               # mistake
model.generate(tok, 5).upper()                                  # mistake
shape = model.logits(tok, docs).shape                           # mistake
history: list[float] = trainer.fit(docs).loss                   # mistake
fl.schedules.linear(steps=0.5)                                  # mistake
fl.schedules.warmup(100, 0.5)                                   # mistake
fl.kernels.grad_norm([1.0])                                     # mistake
fl.split_docs(docs, 0.1)                                        # mistake
fl.set_num_threads("2")                                         # mistake
