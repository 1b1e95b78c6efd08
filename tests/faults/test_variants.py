"""The instruction sets against each other, and the least of them on an emulated old CPU.

Results are bitwise identical within one instruction set only; across sets they agree within the bounds here.
"""

import json
import os
import shutil
import subprocess
import sys

import cases
import numpy as np
import pytest

from fastloop import _core

STEPS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import cases, numpy as np, fastloop as fl
result = {"isa": fl._core.isa}
for name in cases.MODELS:
    trainer = cases.make(name, schedule=fl.schedules.constant())
    everything, _ = cases.data(name)
    trainer.zero_grad()
    result[name + " loss"] = [trainer.forward(trainer.batch(*everything))]
    trainer.backward()
    result[name + " gradient"] = trainer.model.grads.flat.tolist()
    trainer.zero_grad()
    result[name + " losses of 20 steps"] = trainer.fit(*everything, steps=20, batch_size=4).loss.tolist()
for dtype, name, lowest in ((np.float64, "", -700.0), (np.float32, "float32-", -80.0)):
    rng = np.random.default_rng(0)
    p, m, v = (a.astype(dtype) for a in (rng.normal(size=1000), rng.normal(size=1000), rng.random(1000)))
    for t in range(1, 6):
        g = rng.normal(size=1000).astype(dtype)
        fl.kernels.adam_step(g, p, m, v, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, t=t)
    result[name + "adam"] = p.tolist()
    logits = np.linspace(lowest, 0.0, 20_001).reshape(-1, 1)
    logits = np.ascontiguousarray(np.hstack([logits, np.zeros_like(logits)])).astype(dtype)
    dlogits = np.empty_like(logits)
    fl.kernels.cross_entropy_backward(logits, np.ones(len(logits), np.int64), dlogits)
    result[name + "exp"] = (dlogits[:, 0] * dtype(len(logits))).tolist()    # of x <= 0: exp(x) / (1 + exp(x))
print(json.dumps(result))
"""
# In ULPs of each value; of the largest where the values are sums that may cancel.
ULPS = {"loss": 4, "gradient": 16, "losses of 20 steps": 64, "adam": 4, "exp": 4}


def results(isa):
    environment = {**os.environ, "FASTLOOP_ISA": isa}
    done = cases.python("-c", STEPS, cases.Path(__file__).parent, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.pop("isa") == isa
    return result


def test_instruction_sets_agree_to_rounding():
    if len(_core.supported) == 1:
        pytest.skip("this CPU runs one instruction set only")
    wanted, *others = (results(isa) for isa in reversed(_core.supported))
    for isa, found in zip(reversed(_core.supported[:-1]), others, strict=True):
        assert found.keys() == wanted.keys()
        worst = dict.fromkeys(ULPS, 0.0)
        for name in wanted:
            what = next(what for what in ULPS if name.endswith(what))
            a, b = np.array(wanted[name]), np.array(found[name])
            if name.startswith("float32-"):
                a, b = a.astype(np.float32), b.astype(np.float32)
            unit = np.spacing(np.abs(a).max() if what in ("gradient", "adam") else np.abs(a))
            worst[what] = max(worst[what], float((np.abs(a - b) / unit).max()))
        print(f"{isa} against {_core.supported[-1]}, ULPs: {worst}")
        assert all(worst[what] <= ULPS[what] for what in ULPS), (isa, worst)


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-x86_64 is not installed: no emulated old CPU")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the emulated CPU is an x86-64")
def test_an_old_cpu_trains_with_the_baseline():
    """Nehalem (2008) has SSE4.2 and no AVX: what is compiled for more must never be reached."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import cases, fastloop as fl; print(*fl._core.supported)\n"
    train = (
        "for model in cases.MODELS:\n"
        "    trainer = cases.make(model)\n"
        "    print(trainer.fit(*cases.data(model)[0], steps=20, batch_size=2).loss[-1].item())\n"
    )
    command = ["qemu-x86_64", "-cpu", "Nehalem", os.path.realpath(sys.executable), "-c", code + train]
    environment = dict(os.environ)
    environment.pop("FASTLOOP_ISA", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    supported, *losses = done.stdout.splitlines()
    assert supported == "baseline"
    here = cases.python("-c", code + train, env={**environment, "FASTLOOP_ISA": "baseline"})
    assert len(losses) == len(cases.MODELS)
    for model, loss, expected in zip(cases.MODELS, losses, here.stdout.splitlines()[1:], strict=True):
        rel = 1e-4 if model in cases.FLOAT32 else 1e-12
        assert float(loss) == pytest.approx(float(expected), rel=rel, abs=0.0), model
    refused = subprocess.run(command, capture_output=True, text=True, env={**environment, "FASTLOOP_ISA": "avx512"})
    assert refused.returncode == 1
    assert "FASTLOOP_ISA = 'avx512' is not one of baseline, which this CPU can run" in refused.stderr
