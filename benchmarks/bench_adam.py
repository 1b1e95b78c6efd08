"""Adam alone: one step over n parameters, beside NumPy, PyTorch, Numba and JAX.

Checked first: after STEPS steps with changing gradients every implementation has fastloop's parameters and moments.

What each one is: `fastloop` is opt.step([grad]) of fl.Adam(params=[param]), checks and all; `fastloop bound` the same
compiled pass over a model's buffers, as a Trainer calls it.  `NumPy` is Adam as formulas are written down, `NumPy in
place` fastloop's twin.  PyTorch's fused and foreach Adam are torch.optim's.  Numba is a loop (parallel where there
is more than one thread), without fastmath, as NumPy would round; JAX is a jitted function that is given its buffers.

Traffic: a step reads the gradient, the parameter and both moments and writes all but the gradient: seven values a
parameter (fit also zeroes the gradient, eight; not done here).  `plain pass` reads and writes the very same with one
addition for each value written, the limit that memory sets: a Numba loop over the same threads.  Without Numba it is
three NumPy additions over blocks that stay in cache, on one thread, and somewhat slower than that limit.  `share` is
fastloop's rate over that of the plain pass.
"""

import harness
import numpy as np

import fastloop as fl
from fastloop import _core, reference

SIZES = (992, 4_192, 30_000, 100_000, 1_000_000, 10_000_000)
STEPS = 5
HYPER = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
MOVED = 7       # values a parameter
# of parameters and moments; in float32 a peer may round 1 - beta2^t, near 0.001, to float32 as well
RTOL, ATOL = {"float64": 1e-11, "float32": 2e-5}, {"float64": 1e-14, "float32": 1e-7}
LR, B1, B2, EPS = HYPER.values()


class Fastloop:
    def __init__(self, param, threads):
        self.param = param
        self.adam = fl.Adam(params=[param], lr=LR, betas=(B1, B2), eps=EPS)

    def step(self, grad):
        self.adam.step([grad])

    def state(self):
        state = self.adam.state_dict()["state"][0]
        return self.param, state["exp_avg"], state["exp_avg_sq"]


class FastloopBound:
    """What a Trainer needs at least: a model of n parameters, whatever its shape, and its optimiser."""

    def __init__(self, param, threads):
        self.model = fl.BigramLM(1, n_embd=1, block_size=param.size - 2, dtype=param.dtype)
        self.model.params.flat[:] = param
        self.adam = fl.Adam(lr=LR, betas=(B1, B2), eps=EPS)
        self.loop = _core.variant.Loop(self.model.make_core(), self.adam.bind(self.model))

    def take(self, grad):
        self.model.grads.flat[:] = grad

    def step(self, grad):
        self.loop.step(LR, 1.0)     # the norm, which is not measured here

    def state(self):
        state = self.adam.state_dict()["state"]
        return self.model.params.flat, *(np.concatenate([s[name].ravel() for s in state.values()])
                                         for name in ("exp_avg", "exp_avg_sq"))


class NumPy:
    def __init__(self, param, threads):
        self.param, self.m, self.v, self.t = param, np.zeros_like(param), np.zeros_like(param), 0

    def step(self, grad):
        self.t += 1
        self.m = B1 * self.m + (1 - B1) * grad
        self.v = B2 * self.v + (1 - B2) * grad**2
        m_hat = self.m / (1 - B1**self.t)
        v_hat = self.v / (1 - B2**self.t)
        self.param -= LR * m_hat / (np.sqrt(v_hat) + EPS)

    def state(self):
        return self.param, self.m, self.v


class NumPyInPlace(NumPy):
    def step(self, grad):
        self.t += 1
        reference.adam_step(grad, self.param, self.m, self.v, t=self.t, **HYPER)


class Torch:
    def __init__(self, param, threads, **kind):
        import torch

        self.torch = torch
        self.param = torch.from_numpy(param).requires_grad_()
        self.adam = torch.optim.Adam([self.param], lr=LR, betas=(B1, B2), eps=EPS, **kind)

    def take(self, grad):
        self.param.grad = self.torch.from_numpy(grad)

    def step(self, grad):
        self.adam.step()

    def state(self):
        state = self.adam.state[self.param]
        return self.param.detach().numpy(), state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()


class TorchFused(Torch):
    def __init__(self, param, threads):
        super().__init__(param, threads, fused=True)


class TorchForeach(Torch):
    def __init__(self, param, threads):
        super().__init__(param, threads, foreach=True)


class Numba(NumPy):
    def __init__(self, param, threads):
        from numba import njit, prange

        real = param.dtype.type     # of constants too: a Python float would make a float32 loop one of float64
        b1, rest1, b2, rest2, eps = map(real, (B1, 1 - B1, B2, 1 - B2, EPS))

        # error_model: without it every division asks whether to raise, and the loop stays scalar.
        @njit(parallel=threads > 1, error_model="numpy")
        def adam(grad, param, m, v, step_size, v_scale):
            for i in prange(param.size):
                m[i] = b1 * m[i] + rest1 * grad[i]
                v[i] = b2 * v[i] + rest2 * grad[i] * grad[i]
                param[i] -= step_size * m[i] / (np.sqrt(v[i]) * v_scale + eps)

        super().__init__(param, threads)
        self.adam, self.real = adam, real

    def step(self, grad):
        self.t += 1
        step_size, v_scale = self.real(LR / (1 - B1**self.t)), self.real(1 / np.sqrt(1 - B2**self.t))
        self.adam(grad, self.param, self.m, self.v, step_size, v_scale)


class Jax:
    def __init__(self, param, threads):
        import jax
        import jax.numpy as jnp

        def adam(state, grad):
            param, m, v, t = state
            t = t + 1
            m = B1 * m + (1 - B1) * grad
            v = B2 * v + (1 - B2) * grad * grad
            param = param - LR / (1 - B1**t) * m / (jnp.sqrt(v) / jnp.sqrt(1 - B2**t) + EPS)
            return param, m, v, t

        self.jnp, self.adam = jnp, jax.jit(adam, donate_argnums=0)
        self.now = jnp.array(param), jnp.zeros(param.size), jnp.zeros(param.size), jnp.zeros(())

    def take(self, grad):
        self.grad = self.jnp.array(grad)

    def step(self, grad):
        self.now = self.adam(self.now, self.grad)
        self.now[0].block_until_ready()

    def state(self):
        return [np.array(x) for x in self.now[:3]]


def implementations(found):
    kinds = {"fastloop": Fastloop, "fastloop bound": FastloopBound, "NumPy": NumPy, "NumPy in place": NumPyInPlace}
    if found["torch"]:
        kinds |= {"torch fused": TorchFused, "torch foreach": TorchForeach}
    if found["numba"]:
        kinds["Numba"] = Numba
    if found["jax"]:
        kinds["JAX"] = Jax
    return kinds


def plain_pass(n, threads, numba, dtype):
    """A function that reads four arrays of n and writes three of them, with as little arithmetic as that takes."""
    grad, param, m, v = np.full((4, n), 1e-9, dtype)
    if numba:
        @numba.njit(parallel=threads > 1)
        def add(grad, param, m, v):
            for i in numba.prange(grad.size):
                param[i] += grad[i]
                m[i] += grad[i]
                v[i] += grad[i]

        return lambda: add(grad, param, m, v)

    block = 16_384

    def add_blocks():
        for i in range(0, n, block):
            x = grad[i : i + block]
            for array in (param, m, v):
                np.add(array[i : i + block], x, out=array[i : i + block])

    return add_blocks


def check(built, n, dtype):
    """Take STEPS steps with each; raise where parameters or moments differ from the first's, or have another dtype."""
    rng = np.random.default_rng(1)
    grad = np.empty(n, dtype)
    for _ in range(STEPS):
        grad[:] = rng.normal(size=n)
        for it in built.values():
            getattr(it, "take", lambda grad: None)(grad)
            it.step(grad)
    expected = built["fastloop"].state()
    for name, it in built.items():
        for what, got, want in zip(("param", "m", "v"), it.state(), expected, strict=True):
            message = f"{name}, {what} of {n} in {got.dtype}"
            assert got.dtype == dtype, message
            np.testing.assert_allclose(got, want, RTOL[dtype], ATOL[dtype], err_msg=message)
    return grad


def main():
    args = harness.arguments(__doc__.splitlines()[0])
    fl.set_num_threads(args.threads)
    found = harness.peers(args)
    report = harness.Report("bench_adam", args, found)
    kinds = implementations(found)
    rows = []
    for n in SIZES[:3] if args.quick else SIZES:
        start = np.random.default_rng(0).normal(size=n).astype(args.dtype)
        built = {name: kind(start.copy(), args.threads) for name, kind in kinds.items()}
        grad = check(built, n, args.dtype)
        calls = {name: harness.repeat(lambda it=it, grad=grad: it.step(grad)) for name, it in built.items()}
        calls["plain pass"] = harness.repeat(plain_pass(n, args.threads, found["numba"], args.dtype))
        seconds = report.measure(calls)
        rates = {name: MOVED * n * grad.itemsize / seconds[name] / 1e9 for name in ("fastloop", "plain pass")}
        rows.append({
            "n": n, "dtype": built["fastloop"].param.dtype.name, "seconds": seconds, "GB/s": rates["fastloop"],
            "GB/s plain": rates["plain pass"], "share": rates["fastloop"] / rates["plain pass"],
        })
    report.table("One step of Adam: microseconds (in brackets, times fastloop's)", rows)
    report.close()


if __name__ == "__main__":
    main()
