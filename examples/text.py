"""A GPT learns a text in windows: the Zen of Python, which Python ships (PEP 20, in the public domain), or a file.

    python examples/text.py [FILE]
"""

import contextlib
import io
import sys

import fastloop as fl

if len(sys.argv) > 1:
    text = fl.load_text(sys.argv[1])
else:
    with contextlib.redirect_stdout(io.StringIO()):     # it prints itself when it is imported
        import this
    text = "".join(this.d.get(char, char) for char in this.s)

tok = fl.CharTokenizer([text])
model = fl.GPT(tok.vocab_size, n_embd=32, n_head=4, n_layer=1, block_size=64)
trainer = fl.Trainer(model, fl.Adam(lr=0.01, betas=(0.85, 0.99)), tokenizer=tok, schedule=fl.schedules.linear())
baseline = fl.bigram_baseline(text, tokenizer=tok, block_size=64)
history = trainer.fit(text, steps=800, batch_size=16)      # a step takes 16 windows of 64 characters from anywhere
print(f"{len(text):,} characters, {tok.vocab_size - 1} of them different; pair counts give {baseline:.3f} nats each")
print(f"loss {history.loss[0]:.3f} -> {history.mean_loss():.3f}", history.sparkline(40))

# So small a text is learnt by heart: the model goes on from its first line.
prompt = text[:40]
(recited,) = model.generate(tok, 1, temperature=0.0, prompt=prompt, length=300)
right = next((i for i, (a, b) in enumerate(zip(recited, text, strict=False)) if a != b), len(recited)) - len(prompt)
print(f"recites {right} of 300 characters from memory:\n\n{recited}")
