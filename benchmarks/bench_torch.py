"""A step of fastloop.torch's optimisers beside torch.optim's: fused, and as torch chooses by default.

Over the 27 tensors of a nanoGPT of four layers and width 128, the 60 of a narrow ResNet, and one of ten million values.
Checked first: the same parameters after five steps.  Microseconds; `unchecked` is without the check that every gradient
is finite.
"""

import harness
import torch

import fastloop as fl
from fastloop import torch as ft

RTOL = {"float64": 1e-9, "float32": 2e-4}
STEPS = 5
NANOGPT = [(65, 128), (64, 128), *4 * [(128,), (384, 128), (128, 128), (128,), (512, 128), (128, 512)], (128,)]
RESNET = [shape for i in range(20) for shape in ((16 * 2 ** (i // 8), 16 * 2 ** (i // 8), 3, 3), (16,), (16,))]
LISTS = {"nanoGPT": NANOGPT, "ResNet": RESNET, "one": [(10_000_000,)]}
KINDS = {"Adam": {}, "SGD": {"lr": 1e-3, "momentum": 0.9}}


def tensors(shapes, dtype):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]
    for p in params:
        p.grad = 1e-3 * torch.randn(p.shape, generator=generator, dtype=dtype)
    return params


def measure(report, name, kind, dtype):
    shapes, options = LISTS[name], KINDS[kind]
    ours, theirs = getattr(ft, kind), getattr(torch.optim, kind)
    made = {
        "fastloop": (ours, {}), "unchecked": (ours, {"check_finite": False}), "torch fused": (theirs, {"fused": True}),
        "torch default": (theirs, {}),
    }
    built = {}
    for way, (cls, more) in made.items():
        params = tensors(shapes, dtype)
        built[way] = params, cls(params, **options, **more)
        for _ in range(STEPS):
            built[way][1].step()
    for way, (params, _) in built.items():
        for a, b in zip(params, built["torch default"][0], strict=True):
            apart = float((a - b).detach().abs().max())
            if not torch.allclose(a, b, rtol=RTOL[report.args.dtype], atol=1e-6):
                raise SystemExit(f"{kind} over {name}: the parameters of {way} differ from torch's by {apart:.1e}")
    seconds = report.measure({way: harness.repeat(optimizer.step) for way, (_, optimizer) in built.items()})
    n = sum(p.numel() for p in built["fastloop"][0])
    return {
        "optimiser": kind, "tensors": name, "number": len(shapes), "values": n, "seconds": seconds,
        "fused / fastloop": seconds["torch fused"] / seconds["fastloop"],
        "default / fastloop": seconds["torch default"] / seconds["fastloop"],
    }


def main():
    args = harness.arguments(__doc__.splitlines()[0])
    fl.set_num_threads(args.threads)
    found = harness.peers(args)
    report = harness.Report("bench_torch", args, {"torch": found["torch"]})
    dtype = getattr(torch, args.dtype)
    cases = [(kind, name) for kind in KINDS for name in LISTS][: 2 if args.quick else None]
    rows = [measure(report, name, kind, dtype) for kind, name in cases]
    report.table("A step: microseconds (in brackets, times fastloop's)", rows)
    report.close()


if __name__ == "__main__":
    main()
