"""The GPT's training step: fastloop's fit beside the NumPy twin, PyTorch and JAX, microseconds a document.

One layer, four heads, blocks of 16, Adam, in float64 or (--dtype float32) in float32.  Checked first: over the same
documents, from the same start, every implementation's losses are within TOLERANCE of fastloop's.  The learning rate is
small, because with 0.01 and D >= 128 training is chaotic and rounding alone moves the losses.  PyTorch and JAX come
twice: `padded`, documents as lines of a rectangle, and `packed`, tokens end to end with only attention padded, which
does fewer products.

`products us` is a rough lower bound for all: the multiplications and additions with the weights alone, forward and
twice backward, at the rate at which NumPy's BLAS multiplies two square matrices of 512 in the same run.
"""

import harness
import numpy as np
import step_peers
from step_peers import B1, B2, EPS

import fastloop as fl
from fastloop import reference

LR = 1e-4
TOLERANCE = {"float64": 1e-9, "float32": 2e-4}
T, HEADS = 16, 4
WIDTHS, BATCHES = (16, 32, 64, 128, 256), (1, 16, 64)


class Job(step_peers.Job):
    """`steps` batches of B documents; each also as a rectangle (B, L), L the longest document of the job."""

    def __init__(self, tokenizer, docs, D, B, steps, dtype):
        super().__init__(tokenizer, docs, D, T, B, steps, dtype)
        self.lrs = np.full(steps, LR)
        self.L = max(int(batch[2].max()) for batch in self.batches) + 1

    def model(self):
        return fl.GPT(self.V, n_embd=self.D, n_head=HEADS, n_layer=1, block_size=T, seed=42, dtype=self.dtype)

    def tensors(self):
        """The start as a list of matrices in the order of fastloop's buffer."""
        params = self.model().params
        return [params[name].copy() for name in params]

    def rows(self, batch, L):
        """(B, L) which token of the batch stands where in the rectangle; past a document's end, the last token."""
        first = np.flatnonzero(batch[2] == 0)
        return np.minimum(first[:, None] + np.arange(L), len(batch[0]) - 1)

    def rectangle(self, batch, L):
        """inputs, targets and weights of a batch, (B, L) each; zeros past a document's end."""
        padded = np.zeros((3, self.B, L))
        document = np.cumsum(batch[2] == 0) - 1
        padded[:, document, batch[2]] = batch[0], batch[1], batch[3]
        return padded[0].astype(np.int64), padded[1].astype(np.int64), padded[2].astype(self.dtype)


class Fit:
    """fastloop's fit: many steps in a call."""

    def __init__(self, job):
        self.job = job
        adam = fl.Adam(lr=LR, betas=(B1, B2), eps=EPS)
        self.trainer = fl.Trainer(job.model(), adam, tokenizer=job.tokenizer)
        self.data, _ = self.trainer.prepare(job.docs)

    def run(self, n):
        return self.trainer.fit(self.data, steps=n, batch_size=self.job.B).loss


class NumPy:
    """fastloop's twin."""

    def __init__(self, job):
        self.job, self.model = job, reference.GPTStep(job.start.copy(), job.V, job.D, T, 1, HEADS)

    def run(self, n):
        job, model, losses = self.job, self.model, []
        for _ in range(n):
            s = model.t % job.steps
            model.zero_grad()
            losses.append(model.forward(*job.batches[s]))
            model.backward()
            model.step(LR, B1, B2, EPS)
        return losses


class Torch:
    """Eager PyTorch, padded: functional ops, rms_norm, scaled_dot_product_attention, fused Adam."""

    packed = False

    def __init__(self, job):
        import torch

        self.torch, self.job, self.done = torch, job, 0
        wte, wpe, wq, wk, wv, *rest = job.tensors()
        self.params = [torch.tensor(x, requires_grad=True) for x in (wte, wpe, np.concatenate([wq, wk, wv]), *rest)]
        self.adam = torch.optim.Adam(self.params, lr=LR, betas=(B1, B2), eps=EPS, fused=True)
        if self.packed:
            self.batches = []
            for inputs, targets, positions, weights in job.batches:
                L = positions.max() + 1
                rows = job.rows((inputs, targets, positions, weights), L)
                line = np.cumsum(positions == 0) - 1
                batch = inputs, targets, positions, weights, rows, line * L + positions
                self.batches.append([torch.from_numpy(np.ascontiguousarray(x)) for x in batch])
        else:
            rectangles = [job.rectangle(batch, batch[2].max() + 1) for batch in job.batches]
            self.batches = [[torch.from_numpy(x) for x in batch] for batch in rectangles]

    def attention(self, qkv):
        """(B, L, D) of qkv (B, L, 3 D)."""
        B, L, width = qkv.shape
        q, k, v = qkv.view(B, L, 3, HEADS, width // 3 // HEADS).permute(2, 0, 3, 1, 4)
        a = self.torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return a.transpose(1, 2).reshape(B, L, width // 3)

    def loss(self, batch):
        F, D = self.torch.nn.functional, (self.job.D,)
        wte, wpe, wqkv, wo, fc1, fc2, lm_head = self.params
        if self.packed:
            inputs, targets, positions, weights, rows, real = batch
            x = F.embedding(inputs, wte) + F.embedding(positions, wpe)
        else:
            inputs, targets, weights = batch
            x = F.embedding(inputs, wte) + wpe[: inputs.shape[1]]
        x = F.rms_norm(x, D, eps=1e-5)
        qkv = F.linear(F.rms_norm(x, D, eps=1e-5), wqkv)
        if self.packed:
            a = self.attention(qkv[rows] if self.job.B > 1 else qkv[None]).view(-1, *D)
            a = a[real] if self.job.B > 1 else a
        else:
            a = self.attention(qkv)
        x = x + F.linear(a, wo)
        x = x + F.linear(F.relu(F.linear(F.rms_norm(x, D, eps=1e-5), fc1)), fc2)
        logits = F.linear(x, lm_head)
        if self.job.B == 1:
            return F.cross_entropy(logits.view(-1, self.job.V), targets.view(-1))
        return F.cross_entropy(logits.view(-1, self.job.V), targets.view(-1), reduction="none") @ weights.view(-1)

    def run(self, n):
        losses = []
        for _ in range(n):
            self.adam.zero_grad(set_to_none=True)
            loss = self.loss(self.batches[self.done % self.job.steps])
            loss.backward()
            self.adam.step()
            losses.append(loss.detach())
            self.done += 1
        return [float(loss) for loss in losses]


class TorchPacked(Torch):
    packed = True


class Jax:
    """One jitted lax.scan over the job's batches; its state is donated."""

    packed = False

    def __init__(self, job):
        import jax
        import jax.numpy as jnp

        B, L, D = job.B, job.L, job.D
        hidden = jnp.where(jnp.arange(L)[:, None] < jnp.arange(L), -jnp.inf, 0.0)

        def norm(x):
            return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)

        def attention(qkv):
            q, k, v = jnp.moveaxis(qkv.reshape(B, L, 3, HEADS, D // HEADS), (2, 3), (0, 2))
            p = jax.nn.softmax(q @ k.swapaxes(2, 3) / np.sqrt(D // HEADS) + hidden)
            return jnp.moveaxis(p @ v, 1, 2).reshape(B, L, D)

        def loss_of(params, inputs, targets, weights, *places):
            wte, wpe, wqkv, wo, fc1, fc2, lm_head = params
            if self.packed:
                positions, rows, real = places
                x = norm(wte[inputs] + wpe[positions])
                a = attention((norm(x) @ wqkv.T)[rows]).reshape(-1, D)[real]
            else:
                x = norm(wte[inputs] + wpe[:L])
                a = attention(norm(x) @ wqkv.T)
            x = x + a @ wo.T
            x = x + jax.nn.relu(norm(x) @ fc1.T) @ fc2.T
            logits = x @ lm_head.T
            losses = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
            return (weights * losses).sum()

        self.job = job
        wte, wpe, wq, wk, wv, *rest = job.tensors()
        params = [jnp.array(x) for x in (wte, wpe, np.concatenate([wq, wk, wv]), *rest)]
        self.state, step = step_peers.jax_training(loss_of, params, LR)
        self.data = [jnp.array(x) for x in (self.packed_data() if self.packed else self.padded_data())]
        self.scan = jax.jit(lambda state, data: jax.lax.scan(step, state, data), donate_argnums=0)

    def padded_data(self):
        return [np.stack(x) for x in zip(*(self.job.rectangle(batch, self.job.L) for batch in self.job.batches),
                                         strict=True)]

    def packed_data(self):
        """Tokens end to end, zeros behind them up to the longest batch: they weigh nothing."""
        job = self.job
        ids = np.zeros((4, job.steps, job.longest), np.int64)
        weights, rows = np.zeros((job.steps, job.longest), job.dtype), []
        for s, batch in enumerate(job.batches):
            n = len(batch[0])
            line = np.cumsum(batch[2] == 0) - 1
            ids[:, s, :n] = batch[0], batch[1], batch[2], line * job.L + batch[2]
            weights[s, :n] = batch[3]
            rows.append(job.rows(batch, job.L))
        return ids[0], ids[1], weights, ids[2], np.stack(rows), ids[3]

    def run(self, n):
        losses = []
        for _ in range(-(-n // self.job.steps)):
            self.state, loss = self.scan(self.state, self.data)
            losses.append(np.asarray(loss))
        return np.concatenate(losses)


class JaxPacked(Jax):
    packed = True


def blas_rate(report, dtype):
    """Multiplications and additions a second, in a product large enough to reach what the machine can do."""
    n = 512
    a, b, c = np.ones((3, n, n), dtype)
    seconds = report.measure({"BLAS": harness.repeat(lambda: np.dot(a, b, out=c))})
    return 2 * n**3 / seconds["BLAS"]


def measured(report, job, kinds, rate):
    """A row of the table; the losses agree, or this ends the program."""
    built = {name: kind(job) for name, kind in kinds.items()}
    losses = {name: np.array(it.run(job.steps)[: job.steps]) for name, it in built.items()}
    apart = 0.0
    for name, values in losses.items():
        apart = max(apart, float(np.abs(values / losses["fastloop"] - 1.0).max()))
        if not apart <= TOLERANCE[job.dtype]:
            raise SystemExit(f"{name} at D {job.D}, B {job.B}: losses differ from fastloop's by {apart:.1e}")
    seconds = report.measure({name: (lambda n, it=it: len(it.run(n))) for name, it in built.items()})
    seconds = {name: value / job.B for name, value in seconds.items()}
    work = 3 * 2 * job.tokens / job.B * (12 * job.D**2 + job.V * job.D)
    row = {
        "D": job.D, "batch": job.B, "dtype": built["fastloop"].trainer.model.dtype.name,
        "largest difference": f"{apart:.0e}", "products us": 1e6 * work / rate, "seconds": seconds,
    }
    for peer in ("PyTorch", "JAX"):
        variants = [value for name, value in seconds.items() if name.startswith(peer)]
        if variants:
            row[f"best {peer} / fastloop"] = min(variants) / seconds["fastloop"]
    return row


def main():
    args = harness.arguments(
        __doc__.splitlines()[0],
        data={"metavar": "FILE", "help": "documents, one a line (default: the embedded names)"},
        widths={"metavar": "D", "type": int, "nargs": "+", "default": WIDTHS, "help": "only these widths"},
        batches={"metavar": "B", "type": int, "nargs": "+", "default": BATCHES, "help": "only these batch sizes"},
    )
    fl.set_num_threads(args.threads)
    found = harness.peers(args)
    report = harness.Report("bench_gpt", args, {name: found[name] for name in ("torch", "jax")})
    docs = fl.load_docs(args.data)
    tokenizer = fl.CharTokenizer(docs)
    kinds = {"fastloop": Fit, "NumPy": NumPy}
    if found["torch"]:
        kinds |= {"PyTorch padded": Torch, "PyTorch packed": TorchPacked}
    if found["jax"]:
        kinds |= {"JAX padded": Jax, "JAX packed": JaxPacked}
    rate, rows = blas_rate(report, args.dtype), []
    for D in (16, 64) if args.quick else args.widths:
        for B in (1, 16) if args.quick else args.batches:
            steps = max(2, min(500, 500_000 // (D * D * B)))
            rows.append(measured(report, Job(tokenizer, docs, D, B, steps, args.dtype), kinds, rate))
    report.table("Training: microseconds a document (in brackets, times fastloop's)", rows)
    report.close()


if __name__ == "__main__":
    main()
