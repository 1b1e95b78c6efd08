"""Early stopping: few documents, many steps; the validation loss rises, the run stops and restores the best."""

import fastloop as fl

docs = fl.load_docs()
tok = fl.CharTokenizer(docs)
train, validation = docs[:100], docs[1000:1500]
trainer = fl.Trainer(fl.BigramLM(tok.vocab_size), fl.Adam(lr=0.02), tokenizer=tok)
history = trainer.fit(
    train, steps=20_000, batch_size=10, validation=validation, eval_every=50, patience=5, restore_best=True
)
for step, loss in history.evaluations:
    print(f"step {step:5}  validation {loss:.4f}")
print(f"stopped by {history.stop_reason} after {len(history)} steps")
print(f"the best is back: train {trainer.evaluate(train):.4f}, validation {trainer.evaluate(validation):.4f}")
