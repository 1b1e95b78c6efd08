"""Reading a diagnosis: a healthy run, and three that are sick in ways that a loss curve alone may hide."""

import fastloop as fl

docs = fl.load_docs()
tok = fl.CharTokenizer(docs)


def run(lr=0.01, clip_norm=None):
    trainer = fl.Trainer(
        fl.BigramLM(tok.vocab_size), fl.Adam(lr=lr, betas=(0.85, 0.99)), tokenizer=tok,
        schedule=fl.schedules.linear(), clip_norm=clip_norm,
    )
    trainer.fit(docs, steps=1000)
    return trainer


for name, options in {
    "healthy": {},
    "a learning rate far too small": {"lr": 1e-7},
    "a learning rate far too large": {"lr": 3.0},
    "clipped at every step": {"clip_norm": 1e-3},
}.items():
    print(f"{name}:")
    findings = fl.diagnose(run(**options))
    print(*(f"  {finding}" for finding in findings) if findings else ["  nothing found"], sep="\n")
