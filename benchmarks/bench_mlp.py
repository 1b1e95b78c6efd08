"""Small networks over arrays: fastloop's fit beside NumPy, PyTorch and JAX.

Checked first: from the same start over the same batches every implementation has fastloop's losses within
TOLERANCE.
Microseconds a step of Adam, everything included that a step needs; fit also gathers its batches.  JAX appears twice:
one jitted call a step, and a lax.scan over many.  Widths 45 and 46 stand side by side because frameworks have
been seen to become many times slower between the two.
"""

import harness
import numpy as np
from step_peers import B1, B2, EPS, jax_training

import fastloop as fl
from fastloop import reference

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
LR = 0.001
STEPS = 20      # batches, taken in turn
SMALL, WIDE, DIGITS = [2, 16, 16, 1], [[45, 45, 45, 1], [46, 46, 46, 1]], [784, 256, 10]
SHAPES = [(SMALL, 1), (SMALL, 8), (SMALL, 64), (WIDE[0], 32), (WIDE[1], 32), (DIGITS, 1), (DIGITS, 64)]


class Job:
    """STEPS batches of B rows for a ReLU network: squared error to one output, cross-entropy to several."""

    def __init__(self, widths, B, dtype):
        rng = np.random.default_rng(0)
        self.widths, self.B, self.dtype = widths, B, dtype
        self.loss = "mse" if widths[-1] == 1 else "cross_entropy"
        self.X = rng.normal(size=(STEPS * B, widths[0])).astype(dtype)
        if widths[-1] == 1:
            self.y = rng.normal(size=(len(self.X), 1)).astype(dtype)
        else:
            self.y = rng.integers(widths[-1], size=len(self.X))
        self.batches = [(self.X[s : s + B], self.y[s : s + B]) for s in range(0, len(self.X), B)]

    def model(self):
        return fl.MLP(self.widths, loss=self.loss, dtype=self.dtype)

    def __str__(self):
        return f"{'-'.join(map(str, self.widths))}, B {self.B}"


class Fit:
    """Many steps in a call."""

    def __init__(self, job):
        self.trainer = fl.Trainer(job.model(), fl.Adam(lr=LR, betas=(B1, B2), eps=EPS))
        self.data, _ = self.trainer.prepare(job.X, job.y)
        self.B = job.B

    def run(self, n):
        return self.trainer.fit(self.data, steps=n, batch_size=self.B).loss


class NumPy:
    """fastloop's twin: vectorised and in place."""

    def __init__(self, job):
        self.model = reference.MLPStep(job.model().params.flat, job.widths, "relu", job.loss, N=job.B)
        self.batches = job.batches

    def run(self, n):
        losses, model = [], self.model
        for _ in range(n):
            model.zero_grad()
            losses.append(model.forward(*self.batches[model.t % STEPS]))
            model.backward()
            model.step(LR, B1, B2, EPS)
        return losses


class Torch:
    """Eager: Sequential, a loss module, fused Adam."""

    def __init__(self, job):
        import torch

        last = len(job.widths) - 2
        layers, params = [], list(job.model().params.values())
        for i in range(last + 1):
            linear = torch.nn.Linear(job.widths[i], job.widths[i + 1], dtype=getattr(torch, job.dtype))
            linear.weight.data[...], linear.bias.data[...] = map(torch.from_numpy, params[2 * i : 2 * i + 2])
            layers += [linear] if i == last else [linear, torch.nn.ReLU()]
        self.net, self.done = torch.nn.Sequential(*layers), 0
        self.score = torch.nn.MSELoss() if job.loss == "mse" else torch.nn.CrossEntropyLoss()
        self.adam = torch.optim.Adam(self.net.parameters(), lr=LR, betas=(B1, B2), eps=EPS, fused=True)
        self.batches = [(torch.from_numpy(X), torch.from_numpy(y)) for X, y in job.batches]

    def run(self, n):
        losses = []
        for _ in range(n):
            X, y = self.batches[self.done % STEPS]
            self.adam.zero_grad(set_to_none=True)
            loss = self.score(self.net(X), y)
            loss.backward()
            self.adam.step()
            losses.append(loss.detach())
            self.done += 1
        return losses


class JaxStep:
    """One jitted call a step; its state is donated."""

    def __init__(self, job):
        import jax
        import jax.numpy as jnp

        params = list(job.model().params.values())
        params = [(jnp.array(w), jnp.array(b)) for w, b in zip(params[::2], params[1::2], strict=True)]

        def loss_of(params, X, y):
            for w, b in params[:-1]:
                X = jax.nn.relu(X @ w.T + b)
            out = X @ params[-1][0].T + params[-1][1]
            if job.loss == "mse":
                return jnp.mean((out - y) ** 2)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1))

        self.state, step = jax_training(loss_of, params, LR)
        self.done = 0
        self.step = jax.jit(step, donate_argnums=0)
        self.scan = jax.jit(lambda state, data: jax.lax.scan(step, state, data), donate_argnums=0)
        self.batches = [(jnp.array(X), jnp.array(y)) for X, y in job.batches]
        self.data = tuple(jnp.stack(x) for x in zip(*self.batches, strict=True))

    def run(self, n):
        losses = []
        for _ in range(n):
            self.state, loss = self.step(self.state, self.batches[self.done % STEPS])
            losses.append(loss)
            self.done += 1
        losses[-1].block_until_ready()
        return losses


class JaxScan(JaxStep):
    """A jitted lax.scan over all batches."""

    def run(self, n):
        losses = []
        for _ in range(-(-n // STEPS)):
            self.state, loss = self.scan(self.state, self.data)
            losses.append(np.asarray(loss))
        return np.concatenate(losses)


def measure(report, job, kinds):
    built = {name: kind(job) for name, kind in kinds.items()}
    losses = {name: np.array([float(x) for x in it.run(2 * STEPS)]) for name, it in built.items()}
    apart = max(np.abs(x - losses["fastloop"]).max() for x in losses.values())
    if not apart <= TOLERANCE[job.dtype]:
        raise SystemExit(f"{job}: losses differ from fastloop's by {apart:.1e}, more than {TOLERANCE[job.dtype]}")
    seconds = report.measure({name: (lambda n, it=it: len(it.run(n))) for name, it in built.items()})
    return {
        "widths and batch": str(job), "dtype": built["fastloop"].trainer.model.dtype.name,
        "parameters": job.model().num_params, "largest difference": f"{apart:.0e}", "seconds": seconds,
    }


def main():
    args = harness.arguments(__doc__.splitlines()[0])
    fl.set_num_threads(args.threads)
    found = harness.peers(args)
    report = harness.Report("bench_mlp", args, found)
    kinds = {"fastloop": Fit, "NumPy": NumPy}
    kinds |= {"PyTorch": Torch} if found["torch"] else {}
    kinds |= {"JAX step": JaxStep, "JAX scan": JaxScan} if found["jax"] else {}
    rows = [measure(report, Job(*shape, args.dtype), kinds) for shape in (SHAPES[:2] if args.quick else SHAPES)]
    report.table("Whole steps: microseconds (in brackets, times fastloop's)", rows)
    report.close()


if __name__ == "__main__":
    main()
