"""The bits of training, as hashes: what a change of the code's form must leave alone.

    python tests/bits.py > before.json
    python tests/bits.py --against before.json      # afterwards: says what differs (exit status 1)

For every instruction set that this CPU runs: the parameters, moments and losses of 200 steps of every model under every
optimiser, with clipping, accumulation, epochs and windows of a text among them; the arrays of a checkpoint; what models
generate, predict and evaluate to; every kernel's output.  The hashes hold for one machine (CPU and C library), and not
for another.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

FAULTS = Path(__file__).resolve().parent / "faults"
STEPS = 200


def digest(*parts):
    """A short hash of arrays and of anything that has a repr."""
    h = hashlib.sha256()
    for part in parts:
        h.update(part.tobytes() if hasattr(part, "tobytes") else repr(part).encode())
    return h.hexdigest()[:16]


def runs():
    """{name: hash} of every run, under the instruction set of this process."""
    sys.path[:0] = [str(FAULTS), str(FAULTS.parent.parent)]
    import cases
    import numpy as np

    import fastloop as fl
    from fastloop import checkpoint

    V, X, y = cases.TOK.vocab_size, cases.X, cases.CLASSES
    shapes = {
        "bigram-wide": (lambda **d: fl.BigramLM(V, n_embd=27, block_size=12, **d), (cases.DOCS,)),
        "gpt-wide": (lambda **d: fl.GPT(V, 72, n_head=3, n_layer=2, block_size=20, **d), (cases.DOCS,)),
        "mlp-deep": (lambda **d: fl.MLP([3, 17, 45, 3], "relu", "cross_entropy", **d), (X, y)),
    }
    shapes |= {
        f"float32-{name}": (lambda make=make: make(dtype="float32"), data) for name, (make, data) in shapes.items()
    }
    settings = {
        "plain": ({}, {"batch_size": 1}),
        "clipped": ({"clip_norm": 0.1}, {"batch_size": 7}),
        "accumulated": ({"clip_value": 0.01, "grad_accum": 3}, {"batch_size": 4}),
        "large": ({"clip_norm": 1.0}, {"batch_size": 24, "seed": 3}),
    }
    everything = {**cases.MODELS, **shapes}
    cases.MODELS.update(everything)
    found = {}
    for model, (_, data) in everything.items():
        for optimizer in cases.OPTIMIZERS:
            for name, (trainer_options, fit_options) in settings.items():
                if model in shapes and optimizer in ("sgd", "adamw"):
                    continue
                trainer = cases.make(model, optimizer, **trainer_options)
                shuffle = None if isinstance(data[0], str) else name != "plain"
                try:
                    history = trainer.fit(*data, steps=STEPS, shuffle=shuffle, **fit_options)
                except fl.DivergenceError as error:
                    history = error.history
                moments = [params.flat for params in trainer.optimizer.flats.values()]
                found[f"{model} {optimizer} {name}"] = digest(
                    trainer.model.params.flat, *moments, history.loss, history.norm, history.lr, history.clipped
                )
        extras = [trainer.evaluate(*data)]
        if hasattr(trainer.model, "generate"):
            length = 30 if isinstance(data[0], str) else None
            extras += trainer.model.generate(cases.TOK, 11, 0.9, seed=1, length=length)
            extras.append(trainer.model.logits([cases.TOK.bos, 0, 1, 2]))
        else:
            extras.append(trainer.model.outputs(data[0]))
        found[f"{model} evaluated"] = digest(*extras)
        path = f"/tmp/fastloop-bits-{os.getpid()}.npz"
        trainer.save(path)
        arrays, _ = checkpoint.read(path)
        os.remove(path)
        found[f"{model} checkpoint"] = digest(*[arrays[k] for k in sorted(arrays) if not k.endswith("seconds")])
    for dtype in (np.float64, np.float32):
        found.update(kernels(fl, np, dtype))
    return found


def kernels(fl, np, dtype):
    """{name: hash} of every kernel over some shapes."""
    found, kind = {}, "" if dtype == np.float64 else "float32-"
    for N, V, D in ((1, 1, 1), (7, 27, 16), (64, 256, 64), (19, 300, 13), (40, 2100, 24)):
        rng = np.random.default_rng([N, V, D])
        ids, positions = rng.integers(V, size=N), rng.integers(3, size=N)
        wte, wpe, head = (rng.normal(size=shape).astype(dtype) for shape in ((V, D), (3, D), (V, D)))
        x, dx, logits, dlogits = (np.zeros(s, dtype) for s in ((N, D), (N, D), (N, V), (N, V)))
        dwte, dwpe, dhead, m, v = (np.zeros(s, dtype) for s in ((V, D), (3, D), (V, D), (V, D), (V, D)))
        losses = np.zeros(N)
        fl.kernels.embedding_forward(ids, positions, wte, wpe, x)
        fl.kernels.logits_forward(x, head, logits)
        fl.kernels.cross_entropy_forward(logits, ids, losses)
        loss = fl.kernels.cross_entropy_backward(logits, ids, dlogits)
        fl.kernels.logits_backward(x, head, dlogits, dx, dhead)
        fl.kernels.embedding_backward(ids, positions, dx, dwte, dwpe)
        for t in range(1, 18):
            fl.kernels.adam_step(dhead, head, m, v, lr=0.01, beta1=0.9, beta2=0.99, eps=1e-8, t=t, weight_decay=0.1,
                                 decoupled=t % 2 == 0, grad_scale=0.7)
        norm = fl.kernels.grad_norm(dhead.reshape(-1))
        outputs = (x, logits, losses, loss, dlogits, dx, dhead, dwte, dwpe, head, m, v, norm)
        found[f"{kind}kernels {N} {V} {D}"] = digest(*outputs)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="FILE", help="hashes printed before")
    parser.add_argument("--isa", action="append", help="only this instruction set (may be given again)")
    parser.add_argument("--threads", default="1,3", help="which must all give the same (default 1,3)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(runs()))
        return 0
    sys.path.insert(0, str(FAULTS.parent.parent))
    from fastloop import _core

    found, status = {}, 0
    for isa in args.isa or _core.supported:
        for threads in args.threads.split(","):
            environment = {**os.environ, "FASTLOOP_ISA": isa, "FASTLOOP_NUM_THREADS": threads}
            command = [sys.executable, __file__, "--one"]
            out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            hashes = {f"{isa} {name}": value for name, value in json.loads(out.stdout).items()}
            for name in hashes.keys() & found.keys():
                if hashes[name] != found[name]:
                    print(f"{name}: other bits with {threads} threads", file=sys.stderr)
                    status = 1
            found |= hashes
    if args.against is None:
        print(json.dumps(found, indent=0))
        return status
    before = json.loads(Path(args.against).read_text())
    wrong = sorted(name for name in before if before[name] != found.get(name)
                   and (args.isa is None or name.split()[0] in args.isa))
    for name in wrong:
        print(f"{name}: {before[name]} -> {found.get(name, 'not there')}")
    print(f"{len(found)} hashes ({len(found.keys() - before.keys())} of them new), {len(wrong)} differ")
    return 1 if wrong else status


if __name__ == "__main__":
    sys.exit(main())
