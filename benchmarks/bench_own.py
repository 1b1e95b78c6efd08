"""A model of one's own under the Trainer: what a step costs over its forward and backward.

Linear regression with 1,024 parameters and batches of 16 rows, written in NumPy: as a subclass of fl.Model and as a
function.  Checked first: every way has the same losses within TOLERANCE.  Microseconds a step; `passes` is forward and
backward alone, called by hand over ready-made batches, and the second table what the others add to it.
"""

import harness
import numpy as np
from step_peers import B1, B2, EPS

import fastloop as fl
from fastloop.reference import adam_step

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
LR, N_IN, N_OUT, B, BATCHES = 0.001, 31, 32, 16, 20


class Net(fl.Model):
    def __init__(self, dtype):
        super().__init__({"w": (N_IN, N_OUT), "b": (N_OUT,)}, dtype=dtype)
        self.w, self.b, self.dw, self.db = self.params["w"], self.params["b"], self.grads["w"], self.grads["b"]

    def forward(self, X, y, weights):
        d = X @ self.w
        d += self.b
        d -= y
        self.X, self.d, self.scale = X, d, 2.0 / N_OUT * float(weights[0])
        return self.scale / 2.0 * float(np.vdot(d, d))

    def backward(self):
        self.d *= self.scale
        self.dw += self.X.T @ self.d
        self.db += self.d.sum(0)


def value_and_grad(params, X, y, weights):
    d = X @ params["w"]
    d += params["b"]
    d -= y
    scale = 2.0 / N_OUT * float(weights[0])
    loss = scale / 2.0 * float(np.vdot(d, d))
    d *= scale
    return loss, {"w": X.T @ d, "b": d.sum(0)}


class Job:
    def __init__(self, dtype):
        rng = np.random.default_rng(0)
        self.dtype = dtype
        self.X, self.y = (rng.normal(size=(BATCHES * B, n)).astype(dtype) for n in (N_IN, N_OUT))
        self.batches = [(self.X[s : s + B], self.y[s : s + B]) for s in range(0, len(self.X), B)]
        self.weights = np.full(B, 1.0 / B)


class Fit:
    def __init__(self, job, model):
        self.trainer = fl.Trainer(model, fl.Adam(lr=LR, betas=(B1, B2), eps=EPS))
        self.data, _ = self.trainer.prepare(job.X, job.y)

    def run(self, n):
        return self.trainer.fit(self.data, steps=n, batch_size=B).loss


class Passes:
    """Forward and backward; the gradients of many steps add up."""

    def __init__(self, job):
        self.model, self.job = Net(job.dtype), job

    def run(self, n):
        model, batches, weights = self.model, self.job.batches, self.job.weights
        for i in range(n):
            X, y = batches[i % BATCHES]
            model.forward(X, y, weights)
            model.backward()
        return n


class Loop(Passes):
    """A training loop by hand around the same passes; `update` is a step of Adam."""

    def __init__(self, job, update):
        super().__init__(job)
        self.update, self.t = update(self.model), 0

    def run(self, n):
        model, batches, weights, losses = self.model, self.job.batches, self.job.weights, []
        for _ in range(n):
            model.grads.flat.fill(0.0)
            losses.append(model.forward(*batches[self.t % BATCHES], weights))
            model.backward()
            self.t += 1
            self.update(self.t)
        return losses


def with_numpy(model):
    m, v = np.zeros((2, model.num_params), model.dtype)
    return lambda t: adam_step(
        model.grads.flat, model.params.flat, m, v, lr=LR, beta1=B1, beta2=B2, eps=EPS, t=t
    )


def with_adam(model):
    adam = fl.Adam(params=[model.params.flat], lr=LR, betas=(B1, B2), eps=EPS)
    return lambda t: adam.step([model.grads.flat])


def with_torch(model):
    """Its parameters and gradients are the model's memory; fused Adam."""
    import torch

    param = torch.from_numpy(model.params.flat).requires_grad_()
    param.grad = torch.from_numpy(model.grads.flat)
    adam = torch.optim.Adam([param], lr=LR, betas=(B1, B2), eps=EPS, fused=True)
    return lambda t: adam.step()


def main():
    args = harness.arguments(__doc__.splitlines()[0])
    fl.set_num_threads(args.threads)
    found = harness.peers(args)
    report = harness.Report("bench_own", args, {"torch": found["torch"]})
    job = Job(args.dtype)
    built = {
        "fastloop": Fit(job, Net(args.dtype)),
        "a function": Fit(job, fl.FunctionModel(dict(Net(args.dtype).params), value_and_grad)),
        "loop, fl.Adam": Loop(job, with_adam), "loop, NumPy": Loop(job, with_numpy),
    }
    if found["torch"]:
        built["loop, torch fused"] = Loop(job, with_torch)
    losses = {name: np.array(it.run(2 * BATCHES)) for name, it in built.items()}
    for name, values in losses.items():
        np.testing.assert_allclose(values, losses["fastloop"], rtol=TOLERANCE[args.dtype], err_msg=name)
    calls = {name: (lambda n, it=it: len(it.run(n))) for name, it in built.items()}
    seconds = report.measure({**calls, "passes": Passes(job).run})
    row = {"parameters": Net(args.dtype).num_params, "batch": B}
    report.table("A step: microseconds (in brackets, times fastloop's)", [{**row, "seconds": seconds}])
    over = {name: x - seconds["passes"] for name, x in seconds.items() if name != "passes"}
    report.table("Over the passes alone: microseconds (in brackets, times fastloop's)", [{**row, "seconds": over}])
    report.close()


if __name__ == "__main__":
    main()
