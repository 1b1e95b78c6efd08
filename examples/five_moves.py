"""The training loop of the course, move by move: pick documents, predict, score, backpropagate, clip, update."""

import numpy as np

import fastloop as fl

docs = fl.load_docs()
tok = fl.CharTokenizer(docs)
model = fl.BigramLM(tok.vocab_size, n_embd=16, block_size=8, seed=42)
trainer = fl.Trainer(
    model, fl.Adam(lr=0.01, betas=(0.85, 0.99)), tokenizer=tok, schedule=fl.schedules.linear(steps=1000)
)

losses = []
for step in range(1000):
    batch = trainer.batch(docs[step : step + 1])
    trainer.zero_grad()
    losses.append(trainer.forward(batch))
    trainer.backward()
    norm = trainer.clip_grad_norm(5.0)
    lr = trainer.step()
    if step % 200 == 0 or step == 999:
        print(f"step {step + 1:4}  loss {np.mean(losses[-100:]):.4f}  gradient norm {norm:.3f}  lr {lr:.5f}")

print("samples:", *model.generate(tok, n=8, temperature=0.8, seed=1))

# A move out of order is refused, and says what was expected.
try:
    trainer.step()
except fl.OrderError as error:
    print("refused:", error)
