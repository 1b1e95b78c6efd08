"""The bigram model's training step in each framework, written as its experienced users would.  Nothing is timed here.

Every class takes a Job (shape, start, batches) and the number of threads, and offers
    run(n)       at least n steps of Adam over the job's batches in turn; returns their losses
    gradient()   forward and backward of the first batch at the present parameters; returns the loss
    grads()      the gradients that left, as one flat array in fastloop's order
Batches are given to the peers ready-made, as arrays; fastloop's fit makes its own inside the timing.  Learning
rates fall from LR along the job's batches and start again after the last one.
"""

import random

import numpy as np

import fastloop as fl
from fastloop import reference

LR, B1, B2, EPS = 0.01, 0.85, 0.99, 1e-8
FOREVER = 1e9   # a gradient norm that is never reached: the clipping move runs, and changes nothing


class Job:
    """V ids, width D, blocks of T; `steps` batches of B documents each, taken from docs cyclically."""

    def __init__(self, tokenizer, docs, D, T, B, steps, dtype="float64"):
        self.tokenizer, self.D, self.T, self.B, self.steps, self.dtype = tokenizer, D, T, B, steps, dtype
        self.V = tokenizer.vocab_size
        self.docs = [docs[i % len(docs)] for i in range(B * steps)]
        self.lrs = LR * (1.0 - np.arange(steps) / steps)
        self.batches = [self.arrays(self.docs[s * B : (s + 1) * B]) for s in range(steps)]
        self.tokens = sum(len(batch[0]) for batch in self.batches) / steps      # a step, on average
        self.longest = max(len(batch[0]) for batch in self.batches)
        self.start = self.model().params.flat.copy()
        self.num_params = self.start.size

    def model(self):
        return fl.BigramLM(self.V, n_embd=self.D, block_size=self.T, seed=42, dtype=self.dtype)

    def arrays(self, docs):
        """inputs, targets, positions and weights (N,) of a batch: 1 / (documents, times the document's length)."""
        ids, starts = self.tokenizer.encode_docs(docs)
        positions = np.arange(len(ids) - 1) - np.repeat(starts[:-1], np.diff(starts))
        lengths = np.repeat(np.minimum(np.diff(starts), self.T), np.diff(starts))
        kept = positions < self.T
        weights = (1.0 / (len(docs) * lengths)).astype(self.dtype)
        return ids[:-1].astype(np.int64)[kept], ids[1:].astype(np.int64)[kept], positions[kept], weights[kept]

    def __str__(self):
        return f"V {self.V}, D {self.D}, T {self.T}, B {self.B}"


def synthetic(V, tokens, T, steps=1):
    """Tokenizer and documents of T predictions each, ids drawn uniformly from V, for `steps` steps."""
    chars = [chr(0x20000 + i) for i in range(V - 1)]
    draw = random.Random(0)
    docs = ["".join(draw.choices(chars, k=T - 1)) for _ in range(steps * tokens // T)]
    return fl.CharTokenizer(["".join(chars)]), docs


class Fit:
    """fastloop's fit: many steps in a call."""

    def __init__(self, job, threads):
        self.job, self.trainer = job, self.make_trainer(job, fl.schedules.linear())
        self.data, _ = self.trainer.prepare(job.docs)

    def make_trainer(self, job, schedule):
        adam = fl.Adam(lr=LR, betas=(B1, B2), eps=EPS)
        return fl.Trainer(job.model(), adam, tokenizer=job.tokenizer, schedule=schedule)

    def run(self, n):
        return self.trainer.fit(self.data, steps=n, batch_size=self.job.B).loss


class Moves(Fit):
    """fastloop's five moves, called one by one."""

    def __init__(self, job, threads):
        factors = (job.lrs / LR).tolist()
        self.job, self.trainer = job, self.make_trainer(job, lambda step: factors[step % len(factors)])
        self.batches = [self.trainer.batch(job.docs[s * job.B : (s + 1) * job.B]) for s in range(job.steps)]
        self.trainer.zero_grad()

    def run(self, n):
        losses, trainer, batches = [], self.trainer, self.batches
        for _ in range(n):
            trainer.zero_grad()
            losses.append(trainer.forward(batches[trainer.steps % len(batches)]))
            trainer.backward()
            trainer.clip_grad_norm(FOREVER)
            trainer.step()
        return losses

    def gradient(self):
        self.trainer.zero_grad()
        loss = self.trainer.forward(self.batches[0])
        self.trainer.backward()
        return loss

    def grads(self):
        return self.trainer.model.grads.flat


class NumPy:
    """fastloop's twin: vectorised and in place."""

    def __init__(self, job, threads):
        self.job = job
        self.model = reference.BigramStep(job.start.copy(), job.V, job.D, job.T, N=job.longest)
        self.model.zero_grad()

    def run(self, n):
        job, model, losses = self.job, self.model, []
        for _ in range(n):
            s = model.t % job.steps
            model.zero_grad()
            losses.append(model.forward(*job.batches[s]))
            model.backward()
            model.step(float(job.lrs[s]), B1, B2, EPS)
        return losses

    def gradient(self):
        self.model.zero_grad()
        loss = self.model.forward(*self.job.batches[0])
        self.model.backward()
        return loss

    def grads(self):
        return self.model.grads


class Torch:
    """Eager PyTorch: two embeddings, one linear layer, cross_entropy, fused Adam."""

    new_grads = True    # gradient() allocates the gradients

    def __init__(self, job, threads):
        import torch

        V, D, T = job.V, job.D, job.T
        self.torch, self.job, self.done = torch, job, 0
        wte, wpe, lm_head = (torch.from_numpy(x) for x in np.split(job.start.copy(), [V * D, (V + T) * D]))
        self.wte = torch.nn.Embedding.from_pretrained(wte.view(V, D), freeze=False)
        self.wpe = torch.nn.Embedding.from_pretrained(wpe.view(T, D), freeze=False)
        self.lm_head = torch.nn.Linear(D, V, bias=False, dtype=lm_head.dtype)
        self.lm_head.weight = torch.nn.Parameter(lm_head.view(V, D))
        self.tensors = [self.wte.weight, self.wpe.weight, self.lm_head.weight]
        self.adam = torch.optim.Adam(self.tensors, lr=LR, betas=(B1, B2), eps=EPS, fused=True)
        self.batches = [tuple(torch.from_numpy(x) for x in batch) for batch in job.batches]

    def loss(self, inputs, targets, positions, weights):
        logits = self.lm_head(self.wte(inputs) + self.wpe(positions))
        cross_entropy = self.torch.nn.functional.cross_entropy
        if self.job.B == 1:
            return cross_entropy(logits, targets)
        return cross_entropy(logits, targets, reduction="none") @ weights

    def run(self, n):
        losses, job = [], self.job
        for _ in range(n):
            s = self.done % job.steps
            self.adam.param_groups[0]["lr"] = job.lrs[s]
            self.adam.zero_grad(set_to_none=True)
            loss = self.loss(*self.batches[s])
            loss.backward()
            self.adam.step()
            losses.append(loss.detach())
            self.done += 1
        return losses

    def gradient(self):
        self.adam.zero_grad(set_to_none=True)
        loss = self.loss(*self.batches[0])
        loss.backward()
        return loss.detach()

    def grads(self):
        return np.concatenate([x.grad.numpy().ravel() for x in self.tensors])


def numba_step(V, D, T, parallel, dtype):
    """Compiled (steps, forward_backward) of the Numba peer.  fastmath leaves NaN and infinities alone.

    Constants have the dtype too: a Python float would make a float32 loop one of float64.
    """
    from numba import njit, prange

    compiled = njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy", parallel=parallel)
    real = np.dtype(dtype).type
    b1, rest1, b2, rest2, eps, zero = map(real, (B1, 1 - B1, B2, 1 - B2, EPS, 0))

    def tensors(flat):
        return flat[: V * D].reshape(V, D), flat[V * D : (V + T) * D].reshape(T, D), flat[(V + T) * D :].reshape(V, D)

    tensors = njit(tensors)

    @compiled
    def forward_backward(flat, grad, x, dx, logits, inputs, targets, positions, weights):
        N = inputs.size
        x, dx, logits = x[:N], dx[:N], logits[:N]
        wte, wpe, lm_head = tensors(flat)
        dwte, dwpe, dlm_head = tensors(grad)
        for n in range(N):
            for d in range(D):
                x[n, d] = wte[inputs[n], d] + wpe[positions[n], d]
        np.dot(x, lm_head.T, logits)
        loss = 0.0
        for n in prange(N):
            largest = logits[n, 0]
            for v in range(1, V):
                largest = max(largest, logits[n, v])
            at_target, total = logits[n, targets[n]], zero
            for v in range(V):
                logits[n, v] = np.exp(logits[n, v] - largest)
                total += logits[n, v]
            loss += weights[n] * (np.log(total) + largest - at_target)
            for v in range(V):
                logits[n, v] *= weights[n] / total
            logits[n, targets[n]] -= weights[n]
        np.dot(logits, lm_head, dx)
        np.dot(logits.T, x, dlm_head)
        dwte[:] = 0.0
        dwpe[:] = 0.0
        for n in range(N):
            for d in range(D):
                dwte[inputs[n], d] += dx[n, d]
                dwpe[positions[n], d] += dx[n, d]
        return loss

    @compiled
    def steps(flat, grad, m, v, t, x, dx, logits, inputs, targets, positions, weights, starts, lrs):
        losses = np.empty(lrs.size)
        for s in range(lrs.size):
            a, b = starts[s], starts[s + 1]
            losses[s] = forward_backward(
                flat, grad, x, dx, logits, inputs[a:b], targets[a:b], positions[a:b], weights[a:b]
            )
            step_size = real(lrs[s] / (1 - B1 ** (t + s + 1)))
            v_scale = real(1 / np.sqrt(1 - B2 ** (t + s + 1)))
            for i in prange(flat.size):
                m[i] = b1 * m[i] + rest1 * grad[i]
                v[i] = b2 * v[i] + rest2 * grad[i] * grad[i]
                flat[i] -= step_size * m[i] / (np.sqrt(v[i]) * v_scale + eps)
        return losses

    return steps, forward_backward


class Numba:
    """Many steps in a compiled call: loops, and np.dot for the products, which is SciPy's BLAS.

    (Loops for the products as well were slower at every shape here, the smallest one included.)
    """

    def __init__(self, job, threads):
        # Parallel loops cost some 20 us each to begin, so they are for large steps.
        parallel = threads > 1 and job.longest * job.V * job.D > 3_000_000
        self.job = job
        self.steps, self.forward_backward = numba_step(job.V, job.D, job.T, parallel, job.dtype)
        self.flat = job.start.copy()
        self.grad, self.m, self.v = np.zeros((3, job.num_params), job.dtype)
        self.work = *np.empty((2, job.longest, job.D), job.dtype), np.empty((job.longest, job.V), job.dtype)
        self.starts = np.cumsum([0] + [len(batch[0]) for batch in job.batches])
        self.data = [np.concatenate(x) for x in zip(*job.batches, strict=True)]
        self.done = 0
        self.forward_backward(self.flat, self.grad, *self.work, *(x[:1] for x in self.data))      # compiles

    def run(self, n):
        losses = []
        for _ in range(-(-n // self.job.steps)):
            losses.append(self.steps(
                self.flat, self.grad, self.m, self.v, self.done, *self.work, *self.data, self.starts, self.job.lrs
            ))
            self.done += self.job.steps
        return np.concatenate(losses)

    def gradient(self):
        return self.forward_backward(self.flat, self.grad, *self.work, *self.job.batches[0])

    def grads(self):
        return self.grad


def jax_training(loss_of, params, lr=None):
    """(state, step) of Adam in JAX: step(state, batch) -> state, loss.  A batch ends with its lr unless that is given.

    loss_of(params, *batch); params: a list or tuple of arrays, or of tuples of them.
    """
    import jax
    import jax.numpy as jnp

    def step(state, batch):
        params, m, v, t = state
        *batch, rate = batch if lr is None else (*batch, lr)
        loss, grad = jax.value_and_grad(loss_of)(params, *batch)
        t = t + 1
        m = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, m, grad)
        v = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g * g, v, grad)
        step_size, v_scale = rate / (1 - B1**t), 1 / jnp.sqrt(1 - B2**t)
        params = jax.tree.map(lambda p, m, v: p - step_size * m / (jnp.sqrt(v) * v_scale + EPS), params, m, v)
        return (params, m, v, t), loss

    zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
    return (params, *zeros, jnp.zeros(())), step


class Jax:
    """One jitted lax.scan over the job's batches, padded to whole blocks and masked; its state is donated."""

    new_grads = True

    def __init__(self, job, threads):
        import jax
        import jax.numpy as jnp

        V, D, T, B = job.V, job.D, job.T, job.B

        def loss_of(params, inputs, targets, weights):
            wte, wpe, lm_head = params
            logits = (wte[inputs] + wpe) @ lm_head.T
            losses = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
            return (weights * losses).sum()

        self.job = job
        wte, wpe, lm_head = np.split(job.start, [V * D, (V + T) * D])
        params = jnp.array(wte.reshape(V, D)), jnp.array(wpe.reshape(T, D)), jnp.array(lm_head.reshape(V, D))
        self.state, step = jax_training(loss_of, params)
        padded = np.zeros((3, job.steps, B, T))
        for s, (inputs, targets, positions, weights) in enumerate(job.batches):
            document = np.cumsum(positions == 0) - 1
            padded[:, s, document, positions] = inputs, targets, weights
        self.data = jnp.array(padded[0], jnp.int32), jnp.array(padded[1], jnp.int32), jnp.array(padded[2])
        self.lrs = jnp.array(job.lrs)
        self.scan = jax.jit(lambda state, data: jax.lax.scan(step, state, data), donate_argnums=0)
        self.first = [x[0] for x in self.data]
        self.value_and_grad = jax.jit(jax.value_and_grad(loss_of)).lower(params, *self.first).compile()

    def run(self, n):
        losses = []
        for _ in range(-(-n // self.job.steps)):
            self.state, loss = self.scan(self.state, (*self.data, self.lrs))
            losses.append(np.asarray(loss))
        return np.concatenate(losses)

    def gradient(self):
        loss, self.grad = self.value_and_grad(self.state[0], *self.first)
        return loss.block_until_ready()

    def grads(self):
        return np.concatenate([np.asarray(x).ravel() for x in self.grad])
