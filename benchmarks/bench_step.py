"""The training step: fastloop's fit and its five moves beside NumPy, PyTorch, Numba and JAX.

Checked first: from the same start over the same documents every implementation has fastloop's losses within TOLERANCE,
and in the second table its gradients, in the same dtype.  step_peers.py says what each implementation is.

First table: whole steps with Adam, microseconds a step; `tokens` is the predictions a step makes on average, `tokens/s`
what fit reaches.  Second table: forward and backward alone of one batch, for models where they are nearly all of the
time.  `memory` is what resident memory grows by at its highest, beyond parameters and gradients, in MB; `logits`
the size of a (tokens, V) matrix.
"""

import harness
import numpy as np
from step_peers import Fit, Jax, Job, Moves, Numba, NumPy, Torch, synthetic

import fastloop as fl

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
NAMES = ((16, 8, 1, 1000), (16, 8, 32, 200), (16, 8, 256, 50), (64, 8, 32, 100), (256, 8, 256, 10))   # D, T, B, steps


def implementations(found, fastloop):
    kinds = {**fastloop, "NumPy": NumPy}
    kinds |= {name: kind for name, kind in (("torch", Torch), ("numba", Numba), ("jax", Jax)) if found[name]}
    return {{"torch": "PyTorch", "numba": "Numba", "jax": "JAX"}.get(name, name): kind for name, kind in kinds.items()}


def difference(job, values):
    """The largest difference from fastloop's values, relative to the largest of them; raises above TOLERANCE."""
    expected = np.array(values["fastloop"])
    worst = 0.0
    for name, got in values.items():
        got = np.array([float(x) for x in got]) if isinstance(got, list) else got
        apart = np.abs(got - expected).max() / np.abs(expected).max()
        if not apart <= TOLERANCE[job.dtype]:
            raise SystemExit(f"{name}: differs from fastloop by {apart:.1e}, more than {TOLERANCE[job.dtype]}")
        worst = max(worst, float(apart))
    return f"{worst:.0e}"


def whole_steps(report, job, kinds):
    built = {name: kind(job, report.args.threads) for name, kind in kinds.items()}
    apart = difference(job, {name: it.run(job.steps) for name, it in built.items()})
    seconds = report.measure({name: (lambda n, it=it: len(it.run(n))) for name, it in built.items()})
    return {
        "shape": str(job), "dtype": built["fastloop"].trainer.model.dtype.name, "parameters": job.num_params,
        "tokens": job.tokens, "largest difference": apart, "seconds": seconds,
        "tokens/s": job.tokens / seconds["fastloop"],
    }


def forward_backward(report, job, kinds):
    built = {name: kind(job, report.args.threads) for name, kind in kinds.items()}
    losses, memory, itemsize = {}, {}, job.start.itemsize
    for name, it in built.items():
        def call(name=name, it=it):
            losses[name] = [it.gradient()]

        extra = harness.peak_memory(call)
        if extra is not None:
            memory[f"{name} MB"] = max(0, extra - hasattr(it, "new_grads") * job.num_params * itemsize) / 1e6
    difference(job, losses)
    grads = {name: it.grads() for name, it in built.items()}
    for name, grad in grads.items():
        if grad.dtype != job.dtype:
            raise SystemExit(f"{name}: gradients in {grad.dtype}, expected {job.dtype}")
    apart = difference(job, grads)
    seconds = report.measure({name: harness.repeat(it.gradient) for name, it in built.items()})
    return {
        "shape": str(job), "dtype": grads["fastloop"].dtype.name, "tokens": int(job.tokens),
        "largest difference": apart, "seconds": seconds, "tokens/s": job.tokens / seconds["fastloop"],
        "logits MB": job.tokens * job.V * itemsize / 1e6, **memory,
    }


def main():
    args = harness.arguments(
        __doc__.splitlines()[0], large="add forward and backward at V 50,257 (some 4 GB of memory)",
        data={"metavar": "FILE", "help": "documents, one a line (default: the embedded names)"},
    )
    fl.set_num_threads(args.threads)
    found = harness.peers(args)
    report = harness.Report("bench_step", args, found)
    docs = fl.load_docs(args.data)
    names = fl.CharTokenizer(docs)

    jobs = [Job(names, docs, D, T, B, steps, args.dtype) for D, T, B, steps in (NAMES[:2] if args.quick else NAMES)]
    if not args.quick:
        jobs.append(Job(*synthetic(1000, 1024, 64, 10), D=128, T=64, B=16, steps=10, dtype=args.dtype))
    kinds = implementations(found, {"fastloop": Fit, "five moves": Moves})
    rows = [whole_steps(report, job, kinds) for job in jobs]
    report.table("Whole steps: microseconds (in brackets, times fastloop's)", rows)

    jobs = [Job(names, docs, D, T, B, 1, args.dtype) for D, T, B, _ in (NAMES[3:4] if args.quick else NAMES[3:])]
    if not args.quick:
        jobs.append(Job(*synthetic(1000, 1024, 64), D=128, T=64, B=16, steps=1, dtype=args.dtype))
    if args.large:
        jobs.append(Job(*synthetic(50_257, 512, 64), D=256, T=64, B=8, steps=1, dtype=args.dtype))
    kinds = implementations(found, {"fastloop": Moves})
    rows = [forward_backward(report, job, kinds) for job in jobs]
    report.table("Forward and backward: microseconds (in brackets, times fastloop's)", rows)
    report.close()


if __name__ == "__main__":
    main()
