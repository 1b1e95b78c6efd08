"""A text learnt in windows by a GPT of four layers: fastloop in float32 and float64 beside PyTorch in float32.

Width 128, four heads, blocks of 64, batches of 12, Adam.  Checked first: from the same weights over the same windows
the losses of the first STEPS steps are within TOLERANCE of fastloop's in float32.  All draw and gather their windows
inside the timing, `fit` in its own way, PyTorch by indexing.
"""

import harness
import numpy as np
from step_peers import B1, B2, EPS

import fastloop as fl
from fastloop.sampler import Sampler

TOLERANCE = 1e-4
LR, STEPS = 1e-3, 10
STD = 0.02      # nanoGPT's; with 0.08 Adam's first steps make 1e-4 of float32's rounding
D, HEADS, LAYERS, T, B = 128, 4, 4, 64, 12


class Job:
    def __init__(self, text):
        self.text, self.tokenizer = text, fl.CharTokenizer([text])
        self.V = self.tokenizer.vocab_size

    def model(self, dtype):
        return fl.GPT(self.V, n_embd=D, n_head=HEADS, n_layer=LAYERS, block_size=T, seed=42, init_std=STD, dtype=dtype)


class Fit:
    def __init__(self, job, dtype):
        adam = fl.Adam(lr=LR, betas=(B1, B2), eps=EPS)
        self.trainer = fl.Trainer(job.model(dtype), adam, tokenizer=job.tokenizer)
        self.data, _ = self.trainer.prepare(job.text)

    def run(self, n):
        return self.trainer.fit(self.data, steps=n, batch_size=B).loss


class Torch:
    """Eager PyTorch: functional ops, rms_norm, scaled_dot_product_attention, fused Adam."""

    def __init__(self, job, dtype):
        import torch

        self.torch, self.V, self.done = torch, job.V, 0
        params = {name: torch.tensor(x) for name, x in job.model(dtype).params.items()}
        tensors = [params["wte"], params["wpe"]]
        for i in range(LAYERS):
            tensors.append(torch.cat([params[f"layer{i}.attn_w{x}"] for x in "qkv"]))
            tensors += [params[f"layer{i}.{name}"] for name in ("attn_wo", "mlp_fc1", "mlp_fc2")]
        self.params = [x.requires_grad_() for x in (*tensors, params["lm_head"])]
        self.adam = torch.optim.Adam(self.params, lr=LR, betas=(B1, B2), eps=EPS, fused=True)
        ids, _ = job.tokenizer.encode_docs([job.text])
        self.ids = torch.from_numpy(ids[1:-1].astype(np.int64))     # without BOS
        self.starts = Sampler(len(self.ids) - T, B, order="random")     # fit's, by its default seed
        self.window = torch.arange(T)

    def loss(self, inputs, targets):
        F = self.torch.nn.functional
        wte, wpe, *layers, lm_head = self.params
        x = F.rms_norm(F.embedding(inputs, wte) + wpe, (D,), eps=1e-5)
        for i in range(0, len(layers), 4):
            wqkv, wo, fc1, fc2 = layers[i : i + 4]
            qkv = F.linear(F.rms_norm(x, (D,), eps=1e-5), wqkv)
            q, k, v = qkv.view(B, T, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + F.linear(a.transpose(1, 2).reshape(B, T, D), wo)
            x = x + F.linear(F.relu(F.linear(F.rms_norm(x, (D,), eps=1e-5), fc1)), fc2)
        return F.cross_entropy(F.linear(x, lm_head).view(-1, self.V), targets.view(-1))

    def run(self, n):
        losses = []
        for _ in range(n):
            starts, (first, last) = self.starts.take(self.done, 1)
            places = self.torch.from_numpy(starts[first:last])[:, None] + self.window
            self.adam.zero_grad(set_to_none=True)
            loss = self.loss(self.ids[places], self.ids[places + 1])
            loss.backward()
            self.adam.step()
            losses.append(loss.detach())
            self.done += 1
        return [float(loss) for loss in losses]


def main():
    args = harness.arguments(
        __doc__.splitlines()[0], dtypes=("float32",),
        data={"metavar": "FILE", "help": "a text (default: the embedded names, one a line)"},
    )
    fl.set_num_threads(args.threads)
    found = harness.peers(args)
    report = harness.Report("bench_text", args, {"torch": found["torch"]}, seconds=2.0)
    job = Job(fl.load_text(args.data) if args.data else "\n".join(fl.load_docs()))
    built = {"fastloop": Fit(job, "float32"), "fastloop float64": Fit(job, "float64")}
    if found["torch"]:
        built["PyTorch"] = Torch(job, "float32")
    losses = {name: np.array(it.run(STEPS)) for name, it in built.items()}
    apart = max(float(np.abs(values / losses["fastloop"] - 1.0).max()) for values in losses.values())
    if not apart <= TOLERANCE:
        raise SystemExit(f"losses differ from fastloop's by {apart:.1e}, more than {TOLERANCE}")
    seconds = report.measure({name: (lambda n, it=it: len(it.run(n))) for name, it in built.items()})
    model = built["fastloop"].trainer.model
    row = {
        "characters": len(job.text), "vocabulary": job.V, "parameters": model.num_params, "dtype": model.dtype.name,
        "largest difference": f"{apart:.0e}", "seconds": seconds, "tokens/s": B * T / seconds["fastloop"],
    }
    report.table("Training: milliseconds a step (in brackets, times fastloop's)", [row], unit="ms")
    report.close()


if __name__ == "__main__":
    main()
