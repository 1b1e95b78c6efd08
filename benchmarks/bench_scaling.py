"""How the cost of fastloop's training step grows with vocabulary, width, batch, parameters and threads.

Checked first, at every point: the losses of the first steps are the NumPy twin's within TOLERANCE; in the table of
threads, the parameters after a run are bitwise identical at 1, 2, 3, 4 and 8 threads.

Each sweep changes one thing: `ns/token` is a step of fit over the tokens it trains on, `peak MB` what resident memory
rises by while a model and its Trainer are made and take their first steps, `model MB` what parameters, gradients and
Adam's two moments need of it, four values a parameter.  `growth` fits the upper half of a sweep by a power law: 1 is in
proportion, 0 constant.  Time a token must not grow with the batch: over the upper half of that sweep by no more
than the power GROWTH, else the exit status is 1 (not with --quick, whose timings are too short to tell).
"""

import sys

import harness
import numpy as np
from step_peers import Fit, Job, NumPy, synthetic

import fastloop as fl

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
GROWTH = 0.05
THREADS = (1, 2, 3, 4, 8)
SWEEPS = {                       # what grows -> (V, D, T, tokens) at each point
    "V": [(V, 64, 64, 512) for V in (64, 256, 1024, 4096, 16_384)],
    "D": [(256, D, 64, 512) for D in (16, 32, 64, 128, 256, 512)],
    "B": [(27, 16, 8, 8 * B) for B in (1, 4, 16, 64, 256, 1024)],
    "parameters": [(4 * D, D, 8, 64) for D in (16, 32, 64, 128, 256, 512)],
}
# V, D, T, tokens: from the default step to a vocabulary that is worked on in tiles
SHAPES = [
    (27, 16, 8, 8), (27, 16, 8, 256), (27, 64, 8, 256), (27, 64, 8, 2048), (1000, 128, 64, 1024), (8192, 256, 64, 512),
]


def job(V, D, T, tokens, dtype, steps=3):
    return Job(*synthetic(V, tokens, T, steps), D=D, T=T, B=tokens // T, steps=steps, dtype=dtype)


def check(point, losses, expected):
    apart = np.abs(losses - expected).max()
    if not apart <= TOLERANCE[point.dtype]:
        raise SystemExit(f"{point}: losses differ from the NumPy twin's by {apart:.1e}")


def sweep(report, name, points):
    rows = []
    for V, D, T, tokens in points:
        point, made = job(V, D, T, tokens, report.args.dtype), {}

        def make(point=point, made=made):
            made["fit"] = Fit(point, report.args.threads)
            made["losses"] = made["fit"].run(point.steps)

        peak = harness.peak_memory(make)
        check(point, made["losses"], NumPy(point, 1).run(point.steps))
        seconds = report.measure({"fastloop": lambda n, fit=made["fit"]: len(fit.run(n))})
        rows.append({
            "V": V, "D": D, "B": point.B, "dtype": made["fit"].trainer.model.dtype.name, "tokens": tokens,
            "parameters": point.num_params, "seconds": seconds, "ns/token": seconds["fastloop"] / tokens * 1e9,
            "peak MB": "unknown" if peak is None else peak / 1e6, "model MB": 4 * point.start.nbytes / 1e6,
        })
    report.table(f"Growing {name}", rows)
    return rows


def growth(rows, by, what):
    """The power of `by` that `what` grows with, over the upper half of the sweep; nan where it was not measured."""
    rows = rows[len(rows) // 2 - 1 :]
    values = [row["seconds"]["fastloop"] if what == "time" else row[what] for row in rows]
    if not all(isinstance(value, float) and value > 0.0 for value in values):
        return float("nan")
    return float(np.polyfit(np.log([row[by] for row in rows]), np.log(values), 1)[0])


def with_threads(fit, threads):
    def run(n):
        fl.set_num_threads(threads)
        return len(fit.run(n))

    return run


def threads_table(report, shapes):
    rows, cores = [], harness.cores()
    for shape in shapes:
        point, bits = job(*shape, report.args.dtype), set()
        for threads in THREADS:
            fit = Fit(point, threads)
            with_threads(fit, threads)(point.steps)
            bits.add(fit.trainer.model.params.flat.tobytes())
        if len(bits) != 1:
            raise SystemExit(f"{point}: not the same bits at {THREADS} threads")
        # Each number with a trainer of its own.
        names = {"one thread": 1, f"{cores} threads": cores}
        seconds = report.measure({name: with_threads(Fit(point, n), n) for name, n in names.items()})
        rows.append({"shape": str(point), "dtype": point.dtype, "tokens": shape[-1], "seconds": seconds,
                     "speed-up": seconds["one thread"] / seconds[f"{cores} threads"]})
    report.table("Threads (in brackets, times one thread's)", rows, base="one thread")


def main():
    args = harness.arguments(__doc__.splitlines()[0])
    fl.set_num_threads(args.threads)
    report = harness.Report("bench_scaling", args, {})
    rows = []
    for name, points in SWEEPS.items():
        measured = sweep(report, name, points[:4] if args.quick else points)
        powers = {what: growth(measured, name, what) for what in ("time", "ns/token", "peak MB")}
        rows.append({"growing": name, **powers})
    report.table("Growth: the power of what grows, over the upper half of each sweep", rows)
    if harness.cores() > 1:
        threads_table(report, SHAPES[:3] if args.quick else SHAPES)
    report.close()
    per_token = next(row["ns/token"] for row in rows if row["growing"] == "B")
    print(f"\ntime a token grows with the power {per_token:.2f} of the batch, {GROWTH} is allowed")
    if per_token > GROWTH and not args.quick:
        sys.exit(1)


if __name__ == "__main__":
    main()
