"""Optimisers: against torch.optim and against the formulas, over arrays and under a Trainer, refusals, saved state."""

import hashlib
import inspect
import json
import math
import re

import numpy as np
import pytest

import fastloop as fl
from fastloop import _core
from fastloop.params import Params

SHAPES = [(7, 5), (5,), (3, 4, 2)]
STEPS = 200

# What each is called with here and in torch.optim.
CASES = {
    "sgd": (fl.SGD, {"lr": 0.1}),
    "sgd_l2": (fl.SGD, {"lr": 0.1, "weight_decay": 0.03}),
    "momentum": (fl.SGD, {"lr": 0.03, "momentum": 0.9}),
    "dampening": (fl.SGD, {"lr": 0.03, "momentum": 0.8, "dampening": 0.4, "weight_decay": 0.01}),
    "nesterov": (fl.SGD, {"lr": 0.03, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (fl.Adam, {}),
    "adam_beta1_0": (fl.Adam, {"lr": 0.01, "betas": (0.0, 0.99)}),
    "adam_l2": (fl.Adam, {"lr": 0.01, "betas": (0.85, 0.99), "eps": 1e-6, "weight_decay": 0.1}),
    "adamw": (fl.AdamW, {"lr": 0.01}),
    "adamw_strong": (fl.AdamW, {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.5}),
}
cases = pytest.mark.parametrize("case", CASES)


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in SHAPES]


def gradients(step):
    """Of sizes from 1e-4 to 1, another for each step; one element is always zero."""
    grads = arrays(1000 + step)
    for g in grads:
        g *= np.logspace(-4, 0, g.size).reshape(g.shape)
        g.flat[0] = 0.0
    return grads


def torch_or_skip():
    return pytest.importorskip("torch", reason="torch is not installed: its optimisers cannot be compared")


def torch_optimizer(kind, groups, options):
    """torch's optimiser of the same name, as plain as it comes."""
    return getattr(torch_or_skip().optim, kind.__name__)(groups, **options, foreach=False)


def torch_step(optimizer, tensors, grads):
    import torch

    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(g)
    optimizer.step()


def assert_close(ours, theirs, rtol=1e-12):
    """Each tensor within rtol of its largest element."""
    for a, b in zip(ours, theirs, strict=True):
        b = np.asarray(b)
        assert np.isfinite(a).all()
        assert np.abs(a - b).max() <= rtol * np.abs(b).max()


def digest(opt, params):
    """A hash of parameters, moments, step count and learning rate."""
    state = opt.state_dict()["state"]
    parts = [*params, *(entry[slot] for entry in state.values() for slot in opt.slots)]
    return hashlib.sha256(b"".join(a.tobytes() for a in parts) + f"{opt.t} {opt.lr}".encode()).hexdigest()


# --- the numbers

@cases
def test_equal_to_torch(case):
    kind, options = CASES[case]
    torch = torch_or_skip()
    ours = arrays()
    theirs = [torch.from_numpy(p.copy()) for p in ours]
    opt, other = kind(params=ours, **options), torch_optimizer(kind, theirs, options)
    for step in range(STEPS):
        opt.step(gradients(step))
        torch_step(other, theirs, gradients(step))
    assert_close(ours, theirs)


def formula(kind, params, steps, decays, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, momentum=0.0, dampening=0.0,
            nesterov=False, **_):
    """The published formulas, tensor by tensor, with the bias corrections where the papers have them."""
    for k, wd in enumerate(decays):
        p, m, v = params[k], np.zeros(SHAPES[k]), np.zeros(SHAPES[k])
        for t in range(1, steps + 1):
            g = gradients(t - 1)[k]
            if kind is fl.AdamW:
                p = p - lr * wd * p
            else:
                g = g + wd * p
            if kind is fl.SGD:
                m = g if t == 1 else momentum * m + (1 - dampening) * g
                p = p - lr * (g + momentum * m if nesterov else m if momentum else g)
            else:
                m = betas[0] * m + (1 - betas[0]) * g
                v = betas[1] * v + (1 - betas[1]) * g**2
                p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        params[k] = p
    return params


@cases
@pytest.mark.parametrize("no_decay", [(), (1,)])
def test_equal_to_the_formulas(case, no_decay):
    kind, options = CASES[case]
    default = inspect.signature(kind).parameters["weight_decay"].default
    decays = [0.0 if i in no_decay else options.get("weight_decay", default) for i in range(len(SHAPES))]
    ours = arrays()
    opt = kind(params=ours, **options, no_decay=no_decay)
    for step in range(STEPS):
        opt.step(gradients(step))
    assert_close(ours, formula(kind, arrays(), STEPS, decays, **options))
    assert opt.t == STEPS


def test_no_decay_is_a_parameter_group_of_torch():
    torch = torch_or_skip()
    ours = arrays()
    w, b, u = (torch.from_numpy(p.copy()) for p in ours)
    opt = fl.AdamW(params=ours, lr=0.01, weight_decay=0.2, no_decay=[1])
    other = torch.optim.AdamW([{"params": [w, u], "weight_decay": 0.2}, {"params": [b], "weight_decay": 0.0}], lr=0.01)
    for step in range(STEPS):
        opt.step(gradients(step))
        torch_step(other, [w, b, u], gradients(step))
    assert_close(ours, [w, b, u])


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_defaults_are_torchs(name):
    theirs = inspect.signature(getattr(torch_or_skip().optim, name)).parameters
    for parameter in inspect.signature(getattr(fl, name)).parameters.values():
        if parameter.name not in ("params", "no_decay"):
            assert parameter.default == theirs[parameter.name].default, parameter.name
            assert list(theirs).index(parameter.name) < 6       # by index it means the same


class Flat:
    """What an optimiser asks of a model: parameters and gradients in flat buffers."""

    def __init__(self, names):
        shapes = dict(zip(names, SHAPES, strict=True))
        self.params, self.grads = Params(shapes), Params(shapes)
        for name, p in zip(names, arrays(), strict=True):
            self.params[name] = p


@cases
@pytest.mark.parametrize("no_decay", [(), ("bias",)])
def test_over_arrays_and_bound_to_a_model_the_same_bits(case, no_decay):
    kind, options = CASES[case]
    ours, model = arrays(), Flat(["0.weight", "0.bias", "1.weight"])
    opt = kind(params=ours, **options, no_decay=[1] if no_decay else ())
    bound = kind(**options, no_decay=no_decay)
    core = bound.bind(model)
    for step in range(STEPS):
        grads = gradients(step)
        opt.step(grads)
        for name, g in zip(model.grads, grads, strict=True):
            model.grads[name] = g
        core.step(bound.lr)
    for p, q in zip(ours, model.params.values(), strict=True):
        assert p.tobytes() == q.tobytes()
    ours, bound = opt.state_dict(), bound.state_dict()
    assert ours["param_groups"] == bound["param_groups"]
    for i, entry in ours["state"].items():
        assert {k: np.asarray(v).tobytes() for k, v in entry.items()} == {
            k: np.asarray(v).tobytes() for k, v in bound["state"][i].items()}


@cases
def test_under_a_trainer_the_same_bits_as_over_arrays(case):
    kind, options = CASES[case]
    docs = fl.load_docs()[:20]
    tok = fl.CharTokenizer(docs)
    model, twin = (fl.BigramLM(tok.vocab_size, n_embd=4, block_size=4) for _ in range(2))
    trainer = fl.Trainer(model, kind(**options), tokenizer=tok)
    passes = fl.Trainer(twin, fl.SGD(), tokenizer=tok)
    opt = kind(params=list(twin.params.values()), **options)
    history = trainer.fit(docs, steps=30, batch_size=3)
    for step in range(30):
        passes.zero_grad()
        loss = passes.forward(passes.batch([docs[(3 * step + i) % 20] for i in range(3)]))
        passes.backward()
        opt.step(list(twin.grads.values()))
        assert loss == history.loss[step]
    assert model.params.flat.tobytes() == twin.params.flat.tobytes()


@pytest.mark.parametrize("kind", [fl.AdamW, fl.SGD, lambda **options: fl.SGD(momentum=0.9, **options)])
@pytest.mark.parametrize("n", [5, 30_001])
def test_the_same_bits_at_any_number_of_threads(kind, n, many_threads):
    digests = set()
    for threads in (1, 2, 3, 4, 8):
        fl.set_num_threads(threads)
        rng = np.random.default_rng(0)
        p = rng.normal(size=n)
        opt = kind(params=[p], lr=0.01)
        for _ in range(3):
            opt.step([rng.normal(size=n)])
        digests.add(digest(opt, [p]))
    assert len(digests) == 1


def test_tiny_moments_become_zero():
    """A gradient that stays zero must not leave subnormal moments behind."""
    for opt_of in (fl.Adam, lambda params: fl.SGD(params=params, momentum=0.9)):
        p = np.ones(8)
        opt = opt_of(params=[p])
        opt.step([np.full(8, 1e-3)])
        for _ in range(7000):
            opt.step([np.zeros(8)])
        entry = opt.state_dict()["state"][0]
        moment = entry[opt.slots[0]]
        assert (moment == 0.0).all()
        assert np.isfinite(p).all()


# --- arrays of the user's

@pytest.mark.parametrize("requires_grad", [False, True])
def test_torch_tensors_in_place(requires_grad):
    torch = torch_or_skip()
    ours = arrays()
    tensors = [torch.from_numpy(p.copy()).requires_grad_(requires_grad) for p in ours]
    opt, other = fl.Adam(params=ours), fl.Adam(params=(t for t in tensors))
    for step in range(3):
        opt.step(gradients(step))
        other.step([torch.from_numpy(g) for g in gradients(step)])
    for p, t in zip(ours, tensors, strict=True):
        assert p.tobytes() == t.detach().numpy().tobytes()


def test_a_torch_module_trains():
    torch = torch_or_skip()
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1, dtype=torch.float64)
    x = torch.randn(20, 3, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    opt = fl.Adam(params=net.parameters(), lr=0.1)
    for _ in range(300):
        net.zero_grad()
        loss = ((net(x) - y) ** 2).mean()
        loss.backward()
        opt.step([p.grad for p in net.parameters()])
    assert loss < 1e-6


@pytest.mark.parametrize("increment", [True, False])
def test_a_step_counts_as_a_change_in_place_of_torchs_tensors(increment, monkeypatch):
    """Backward through a graph from before the step raises, as after a step of torch's own."""
    torch = torch_or_skip()
    if not increment:       # as before torch 2.1
        monkeypatch.delattr(torch.autograd.graph, "increment_version", raising=False)
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    scalar, array = torch.nn.Parameter(torch.ones((), dtype=torch.float64)), np.ones(3)
    with torch.inference_mode():
        inference = torch.ones(3, dtype=torch.float64)      # has no count
    opt = fl.SGD(params=[p, scalar, array, inference], lr=1e-3)
    loss = (p**2).sum() * scalar**2
    before = p._version, scalar._version
    with pytest.raises(fl.DivergenceError):
        opt.step([np.full(3, np.nan), np.ones(()), np.ones(3), np.ones(3)])
    assert (p._version, scalar._version) == before
    opt.step([np.ones(3), np.ones(()), np.ones(3), np.ones(3)])
    assert p.tolist() == inference.tolist() == array.tolist() == [0.999] * 3
    assert p._version > before[0]
    assert scalar._version > before[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", [fl.SGD, fl.Adam, lambda params: fl.SGD(params=params, momentum=0.5)])
def test_gradients_are_only_read(kind):
    ours, theirs, grads = arrays(), arrays(), gradients(0)
    for g in grads:
        g.flags.writeable = False
    kind(params=ours).step(grads)
    kind(params=theirs).step(gradients(0))
    assert all(p.tobytes() == q.tobytes() for p, q in zip(ours, theirs, strict=True))
    assert all(g.tobytes() == h.tobytes() for g, h in zip(grads, gradients(0), strict=True))


def test_gradients_may_share_memory_with_each_other_and_differ_from_step_to_step():
    p, q = np.ones(3), np.ones(3)
    opt = fl.SGD(params=[p, q], lr=1.0)
    g = np.array([1.0, 2.0, 3.0])
    opt.step([g, g])
    assert p.tolist() == q.tolist() == [0.0, -1.0, -2.0]
    opt.step(g[::-1].copy() for _ in range(2))
    assert p.tolist() == [-3.0, -3.0, -3.0]


def test_scalars_and_empty_arrays():
    scalar, empty = np.array(2.0), np.empty((0, 3))
    opt = fl.SGD(params=[scalar, empty], lr=0.5)
    opt.step([np.array(1.0), np.empty((0, 3))])
    assert scalar == 1.5


def test_neighbours_in_one_buffer_do_not_overlap():
    flat = np.zeros(6)
    opt = fl.SGD(params=[flat[3:], flat[:3]], lr=1.0)
    opt.step([np.ones(3), np.full(3, 2.0)])
    assert flat.tolist() == [-2.0] * 3 + [-1.0] * 3
    both = np.ones(9)       # params in the middle of what the gradients are a part of
    opt = fl.SGD(params=[both[3:6]], lr=1.0)
    opt.step([both[:3]])
    opt.step([both[6:]])
    assert both.tolist() == [1.0] * 3 + [-1.0] * 3 + [1.0] * 3


# --- refusals: nothing is changed

def unaligned(n):
    return np.zeros(8 * n + 1, np.uint8)[1:].view(np.float64)


BAD = {
    "float32": (lambda: np.zeros(5, np.float32), TypeError, "has dtype float32; expected float64"),
    "big-endian": (lambda: np.zeros(5, ">f8"), TypeError, "has dtype >f8; expected float64"),
    "int": (lambda: np.zeros(5, np.int64), TypeError, "has dtype int64; expected float64"),
    "complex": (lambda: np.zeros(5, complex), TypeError, "has dtype complex128; expected float64"),
    "None": (lambda: None, TypeError, "has dtype object|is a NoneType"),
    "list": (lambda: [0.0] * 5, TypeError, "is a list"),
    "float": (lambda: 1.0, TypeError, "is a float"),
    "strided": (lambda: np.zeros(10)[::2], ValueError, r"has strides \(16,\); expected C-contiguous"),
    "reversed": (lambda: np.zeros(5)[::-1], ValueError, r"has strides \(-8,\); expected C-contiguous"),
    "unaligned": (lambda: unaligned(5), ValueError, "begins at address"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_parameters_are_refused(bad):
    make, error, words = BAD[bad]
    with pytest.raises(error, match=rf"^params\[1\] .*({words})"):
        fl.Adam(params=[np.zeros(3), make()])


def test_read_only_parameters_are_refused():
    p = np.zeros(3)
    p.flags.writeable = False
    with pytest.raises(ValueError, match=r"^params\[0\] is read-only"):
        fl.Adam(params=[p])


@pytest.mark.parametrize("params, error, words", [
    ([], ValueError, "params is empty"),
    (np.zeros(3), TypeError, r"params is one ndarray; expected a list of arrays, such as \[w, b\]"),
    (3.0, TypeError, r"one float; expected a list .* \(for a learning rate pass lr=...\)"),
])
def test_params_must_be_a_list_of_arrays(params, error, words):
    with pytest.raises(error, match=words):
        fl.Adam(params=params)


def test_overlapping_parameters_are_refused():
    flat = np.zeros(10)
    for params, words in [
        ([flat[:6], flat[5:]], r"params\[0\] and params\[1\]"),
        ([flat, np.zeros(2), flat], r"params\[0\] and params\[2\]"),
        ([flat[4:5], np.zeros(2), flat], r"params\[0\] and params\[2\]"),
    ]:
        with pytest.raises(ValueError, match=f"^{words} overlap in memory"):
            fl.Adam(params=params)


@pytest.mark.parametrize("kind", [fl.Adam, fl.AdamW, lambda params: fl.SGD(params=params, momentum=0.9)])
@pytest.mark.parametrize("bad", [
    *BAD, "shape", "transposed", "count", "one array", "overlap", "nan", "inf", "-inf", "1e+200",
])
def test_bad_gradients_change_nothing(kind, bad):
    params = [np.linspace(1.0, 2.0, 5), np.linspace(3.0, 4.0, 6).reshape(2, 3), np.linspace(5.0, 6.0, 5)]
    opt = kind(params=params)
    opt.step([np.ones(5), np.ones((2, 3)), np.ones(5)])
    grads = [np.ones(5), np.ones((2, 3)), np.ones(5)]
    if bad in BAD:
        make, error, words = BAD[bad]
        grads[2], words = make(), rf"^grads\[2\] .*({words})"
    elif bad == "shape":
        grads[1], error, words = np.ones((3, 2)), ValueError, r"^grads\[1\] has shape \(3, 2\); expected \(2, 3\)"
    elif bad == "transposed":
        grads[1], error, words = np.ones((3, 2)).T, ValueError, r"^grads\[1\] has strides \(8, 16\)"
    elif bad == "count":
        grads, error, words = grads[:2], ValueError, "^2 gradients for 3 params"
    elif bad == "one array":
        grads, error, words = np.ones(5), ValueError, "^5 gradients for 3 params"
    elif bad == "overlap":
        grads[2], error, words = params[0], ValueError, r"^grads\[2\] and params\[0\] overlap in memory"
    else:
        grads[2][3], error = float(bad), fl.DivergenceError
        words = "^" + re.escape(f"step 2: the norm of grads[2] is {bad.strip('-')} ")
    before = digest(opt, params)
    with pytest.raises(error, match=words) as caught:
        opt.step(grads)
    assert digest(opt, params) == before
    if error is fl.DivergenceError:
        assert (caught.value.step, caught.value.loss, caught.value.lr) == (1, None, opt.lr)
        assert caught.value.norm == pytest.approx(abs(float(bad)), nan_ok=True)
    opt.step([np.ones(5), np.ones((2, 3)), np.ones(5)])
    assert opt.t == 2


def test_check_finite_false_lets_bad_gradients_through():
    p = np.zeros(2)
    opt = fl.Adam(params=[p])
    opt.step([np.array([np.nan, 1.0])], check_finite=False)
    assert np.isnan(p[0])
    assert p[1] == pytest.approx(-1e-3)


@pytest.mark.parametrize("call, error, words", [
    (lambda: fl.Adam(lr=-0.1), ValueError, r"lr = -0.1 is outside \[0"),
    (lambda: fl.SGD(lr=math.nan), ValueError, "lr = nan is outside"),
    (lambda: fl.SGD(lr="0.1"), TypeError, "lr = '0.1' is a str"),
    (lambda: fl.AdamW(lr=math.inf), ValueError, "lr = inf is outside"),
    (lambda: fl.Adam(betas=(1.0, 0.9)), ValueError, r"betas\[0\] = 1.0 is outside \[0"),
    (lambda: fl.Adam(betas=(0.9, -0.1)), ValueError, r"betas\[1\] = -0.1 is outside \[0"),
    (lambda: fl.Adam(betas=0.9), TypeError, "betas = 0.9; expected a pair"),
    (lambda: fl.Adam(eps=0.0), ValueError, r"eps = 0.0 is outside \(0"),
    (lambda: fl.Adam(weight_decay=-1), ValueError, r"weight_decay = -1 is outside \[0"),
    (lambda: fl.SGD(momentum=-1), ValueError, r"momentum = -1 is outside \[0"),
    (lambda: fl.SGD(momentum=0.9, dampening=math.nan), ValueError, "dampening = nan is outside"),
    (lambda: fl.SGD(nesterov=True), ValueError, "nesterov needs momentum > 0 and dampening 0, got 0.0 and 0.0"),
    (lambda: fl.SGD(momentum=0.9, dampening=0.1, nesterov=True), ValueError, "nesterov needs .* got 0.9 and 0.1"),
    (lambda: fl.Adam(no_decay="bias"), TypeError, "no_decay = 'bias' is a str; expected a list"),
    (lambda: fl.Adam(params=[np.zeros(2)], no_decay=[1]), ValueError, "no_decay = 1 is not an index into a list of 1"),
    (lambda: fl.Adam(no_decay=["bias"]).bind(Flat("abc")), ValueError, "no_decay = 'bias' is not one of a, b, c"),
    (lambda: fl.Adam().step([]), TypeError, "step.grads. is for an optimiser made with params"),
    (lambda: fl.Adam(params=[np.zeros(2)]).bind(Flat("abc")), ValueError, "this optimiser was made for arrays"),
    (lambda: [opt := fl.Adam(), *map(opt.bind, (Flat("abc"), Flat("abc")))], ValueError, "this optimiser already"),
])
def test_wrong_arguments(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()


def test_only_lr_may_change():
    opt = fl.Adam(params=[np.zeros(2)])
    opt.lr = 1
    assert (opt.lr, type(opt.lr)) == (1.0, float)
    with pytest.raises(ValueError, match="lr = -1 is outside"):
        opt.lr = -1
    for name in ("betas", "eps", "weight_decay", "no_decay"):
        with pytest.raises(AttributeError, match=f"^{name} is fixed when an optimiser is made"):
            setattr(opt, name, getattr(opt, name))
    assert opt.lr == 1.0
    p = np.zeros(1)
    opt = fl.SGD(params=[p], lr=1.0)
    opt.step([np.ones(1)])
    opt.lr = 0.25
    opt.step([np.ones(1)])
    assert p[0] == -1.25


# --- saved state

def to_torch(state_dict):
    """A state_dict of fastloop's with tensors in place of arrays, as torch wants them."""
    import torch

    state = {i: {k: torch.tensor(float(v)) if k == "step" else torch.from_numpy(v) for k, v in entry.items()}
             for i, entry in state_dict["state"].items()}
    return {"state": state, "param_groups": state_dict["param_groups"]}


def to_numpy(state_dict):
    """The reverse, as a user would write it."""
    state = {i: {k: np.asarray(v) for k, v in entry.items()} for i, entry in state_dict["state"].items()}
    return {"state": state, "param_groups": state_dict["param_groups"]}


@cases
@pytest.mark.parametrize("convert", [to_numpy, lambda state_dict: state_dict])
def test_state_from_torch(case, convert):
    kind, options = CASES[case]
    torch = torch_or_skip()
    tensors = [torch.from_numpy(p) for p in arrays()]
    other = torch_optimizer(kind, tensors, options)
    for step in range(20):
        torch_step(other, tensors, gradients(step))
    ours = [t.numpy().copy() for t in tensors]
    opt = kind(params=ours, **{**options, "lr": 7.0})
    opt.load_state_dict(convert(other.state_dict()))
    assert opt.lr == other.param_groups[0]["lr"]
    for step in range(20, 60):
        opt.step(gradients(step))
        torch_step(other, tensors, gradients(step))
    assert_close(ours, tensors)


@cases
def test_state_to_torch(case):
    kind, options = CASES[case]
    torch = torch_or_skip()
    ours = arrays()
    opt = kind(params=ours, **options)
    for step in range(20):
        opt.step(gradients(step))
    tensors = [torch.from_numpy(p.copy()) for p in ours]
    other = torch_optimizer(kind, tensors, {**options, "lr": 7.0})
    other.load_state_dict(to_torch(opt.state_dict()))
    for step in range(20, 60):
        opt.step(gradients(step))
        torch_step(other, tensors, gradients(step))
    assert_close(ours, tensors)


def test_groups_of_torch_both_ways():
    torch = torch_or_skip()
    ours = arrays()
    w, b, u = (torch.from_numpy(p.copy()) for p in ours)
    groups = [{"params": [w, u], "weight_decay": 0.2}, {"params": [b], "weight_decay": 0.0}]
    opt, other = fl.AdamW(params=ours, weight_decay=0.2, no_decay=[1]), torch.optim.AdamW(groups)
    for step in range(5):
        opt.step(gradients(step))
    other.load_state_dict(to_torch(opt.state_dict()))
    assert_close([opt.state_dict()["state"][i]["exp_avg"] for i in (0, 1, 2)],
                 [other.state[t]["exp_avg"] for t in (w, b, u)], rtol=0.0)
    # torch counts its tensors group by group; a list in that order takes its state as it is.
    back = fl.AdamW(params=[ours[0], ours[2], ours[1]], weight_decay=0.2, no_decay=[2])
    back.load_state_dict(other.state_dict())
    assert_close([back.state_dict()["state"][i]["exp_avg_sq"] for i in (0, 1, 2)],
                 [other.state[t]["exp_avg_sq"] for t in (w, u, b)], rtol=0.0)


@cases
def test_resumed_midway_the_same_bits(case):
    kind, options = CASES[case]
    whole = arrays()
    opt = kind(params=whole, **options)
    for step in range(40):
        if step == 17:
            halfway, saved = [p.copy() for p in whole], opt.state_dict()
        opt.step(gradients(step))       # must not reach into what was saved
    fresh = kind(params=halfway, **{**options, "lr": 7.0})
    # A group must survive JSON, which knows no tuple; and so must the keys of the state.
    fresh.load_state_dict({"state": {str(i): entry for i, entry in saved["state"].items()},
                           "param_groups": json.loads(json.dumps(saved["param_groups"]))})
    for step in range(17, 40):
        fresh.step(gradients(step))
    assert digest(fresh, halfway) == digest(opt, whole)


def test_bound_state_goes_to_arrays_and_back():
    model, ours = Flat("abc"), arrays()
    opt, bound = fl.Adam(params=ours), fl.Adam()
    with pytest.raises(ValueError, match="bind the optimiser to a model first"):
        bound.load_state_dict(opt.state_dict())
    bound.bind(model)
    opt.step(gradients(0))
    bound.load_state_dict(opt.state_dict())
    assert bound.t == 1
    assert np.array_equal(bound.flats["exp_avg"]["b"], opt.state_dict()["state"][1]["exp_avg"])
    again = fl.Adam(params=arrays())
    again.load_state_dict(bound.state_dict())
    assert again.t == 1


def test_a_state_before_the_first_step_is_empty_and_resets():
    fresh, used = fl.Adam(params=arrays()), fl.Adam(params=arrays())
    used.step(gradients(0))
    assert fresh.state_dict()["state"] == {}
    used.load_state_dict(fresh.state_dict())
    assert used.t == 0
    used.step(np.zeros_like(g) for g in gradients(0))
    assert not used.state_dict()["state"][0]["exp_avg"].any()


def test_torchs_float32_moments_are_taken_exactly():
    opt = fl.SGD(params=[np.zeros(2)], momentum=0.5)
    group = opt.state_dict()["param_groups"]
    opt.load_state_dict({"state": {0: {"momentum_buffer": np.array([0.1, 0.2], np.float32)}}, "param_groups": group})
    assert opt.state_dict()["state"][0]["momentum_buffer"].tolist() == [float(np.float32(0.1)), float(np.float32(0.2))]
    assert opt.t == 1


def change(state_dict, place, value):
    *path, last = place
    for key in path:
        state_dict = state_dict[key]
    state_dict[last] = value


@pytest.mark.parametrize("place, value, words", [
    (("param_groups", 0, "betas"), (0.8, 0.999), r"betas = \(0.8, 0.999\) in the state, \(0.9, 0.999\) in this"),
    (("param_groups", 0, "eps"), 1e-6, "eps = 1e-06 in the state, 1e-08 in this"),
    (("param_groups", 0, "lr"), -1.0, "lr = -1.0 is outside"),
    (("param_groups", 0, "weight_decay"), 0.5, "tensor 0 has weight_decay 0.5 in the state, 0.0 here"),
    (("param_groups", 0, "amsgrad"), True, "amsgrad = True in the state, False in this"),
    (("param_groups", 0, "maximize"), True, "maximize = True in the state, False in this"),
    (("param_groups", 0, "decoupled_weight_decay"), True, "decoupled_weight_decay = True in the state, False in this"),
    (("param_groups", 0, "params"), [0, 1], r"the groups hold tensors \[0, 1\], this optimiser 0 to 2"),
    (("state", 3), {}, r"the state holds tensors \[0, 1, 2, 3\], this optimiser 0 to 2"),
    (("state", 1, "step"), 9, r"the tensors must be at one step, at least 0; they are at \[1, 9\]"),
    (("state", 1, "exp_avg"), np.zeros(4), r"exp_avg of tensor 1 has shape \(4,\), expected \(5,\)"),
    (("state", 1, "exp_avg"), np.zeros(5, complex), "exp_avg of tensor 1 has dtype complex128"),
    (("state", 1, "exp_avg_sq"), np.full(5, np.nan), "exp_avg_sq of tensor 1 is not finite"),
    (("state", 1), {"step": 1}, "the state of tensor 1 is nothing, that of Adam exp_avg, exp_avg_sq"),
    (("state", 1), {"step": 1, "momentum_buffer": np.zeros(5)}, "of tensor 1 is momentum_buffer, that of Adam exp_avg"),
    (("state", 1, "max_exp_avg_sq"), np.zeros(5), "of tensor 1 is exp_avg, exp_avg_sq, max_exp_avg_sq, that of Adam"),
    (("state", 1, "exp_avg"), np.full(5, -np.inf), "exp_avg of tensor 1 is not finite"),
    (("state", 1, "exp_avg_sq"), np.linspace(1.0, -1e-300, 5), "exp_avg_sq of tensor 1 is -1e-300 at least once"),
    (("state", 1, "step"), 1.7, "step of tensor 1 = 1.7 must be an int of at least 0"),
    (("state", 1, "step"), np.float32(1.5), "step of tensor 1 = 1.5 must be an int"),
    (("state", 1, "step"), -1, "step of tensor 1 = -1 must be an int of at least 0"),
    (("state", 1, "step"), 2**63 - 1, "step of tensor 1 = 9223372036854775807 must be an int of at least 0"),
    (("state", 0, "step"), 1e30, "step of tensor 0 = 1000000000000000019884624838656 must be an int"),
    (("state", 1, "step"), math.nan, "step of tensor 1 = nan must be an int"),
    (("state", 1, "step"), "1", "step of tensor 1 = '1' must be an int"),
    (("state", 1, "step"), True, "step of tensor 1 = True must be an int"),
    (("state", 1, "step"), None, "step of tensor 1 = None must be an int"),
    (("param_groups", 0), {"params": [0, 1, 2]}, "the state has no lr, which Adam has"),
    (("param_groups", 0, "lr"), math.inf, "lr = inf is outside"),
])
def test_a_state_that_does_not_fit_changes_nothing(place, value, words):
    params = arrays()
    opt, other = fl.Adam(params=params), fl.Adam(params=arrays(), lr=0.5)
    for step in range(3):
        opt.step(gradients(step))
    other.step(gradients(3))
    state_dict = other.state_dict()
    change(state_dict, place, value)
    before = digest(opt, params)
    with pytest.raises((ValueError, TypeError, KeyError), match=words):
        opt.load_state_dict(state_dict)
    assert digest(opt, params) == before


@pytest.mark.parametrize("step", [3, 3.0, np.float32(3.0), np.array(3), np.int64(3), 2**53])
def test_a_whole_number_of_steps_is_taken_in_whatever_type(step):
    opt, other = fl.Adam(params=arrays()), fl.Adam(params=arrays())
    other.step(gradients(0))
    state_dict = other.state_dict()
    for entry in state_dict["state"].values():
        entry["step"] = step
    opt.load_state_dict(state_dict)
    assert (opt.t, type(opt.t)) == (step, int)
    opt.step(gradients(1))
    assert opt.t == step + 1


def test_the_state_of_another_optimiser_is_refused_by_its_slots():
    kinds = {
        "Adam": lambda: fl.Adam(params=arrays()), "SGD": lambda: fl.SGD(params=arrays()),
        "momentum": lambda: fl.SGD(params=arrays(), momentum=0.9),
    }
    for name, kind in kinds.items():
        for other in kinds.values():
            opt, source = kind(), other()
            source.step(gradients(0))
            if other is not kind:
                with pytest.raises(ValueError, match=r"^the state of tensor 0 is .*, that of (Adam|SGD) "):
                    opt.load_state_dict(source.state_dict())
                assert opt.t == 0, name
            opt, source = kind(), other()       # before a first step there are only the groups to tell by
            if (name == "Adam") != (other is kinds["Adam"]):
                with pytest.raises(ValueError, match=r"^the state has no (betas|momentum), which (Adam|SGD) has"):
                    opt.load_state_dict(source.state_dict())


def test_the_state_of_an_sgd_without_momentum_may_say_none():
    """As torch 2.0 writes it."""
    opt = fl.SGD(params=[np.ones(2)])
    group = opt.state_dict()["param_groups"]
    opt.load_state_dict({"state": {0: {"momentum_buffer": None}}, "param_groups": group})
    assert opt.t == 1


@pytest.mark.parametrize("value, error", [
    (-1, ValueError), (1.5, TypeError), (2**53 + 1, ValueError), (1e30, ValueError), (math.nan, TypeError),
    ("3", TypeError), (None, TypeError), (True, TypeError), (np.ones(2), TypeError),
])
def test_a_step_count_that_is_not_one_is_refused(value, error):
    opt = fl.Adam(params=arrays())
    opt.t = 7.0
    with pytest.raises(error, match=r"^t = .* must be an int of at least 0"):
        opt.t = value
    assert opt.t == 7


def test_config_makes_the_same_optimiser():
    for kind, options in CASES.values():
        opt = kind(**options, no_decay=["bias"])
        assert kind(**opt.config).config == opt.config
        assert repr(opt).startswith(f"{kind.__name__}(lr={opt.lr}, ")


# --- clipping by value, in the compiled loop

def bigram(clip_value=None):
    model = fl.BigramLM(4, n_embd=3, block_size=4, init_std=1.0)
    tok = fl.CharTokenizer(["abc"])
    trainer = fl.Trainer(model, fl.SGD(lr=0.5), tokenizer=tok)
    return trainer, trainer.prepare(["abc", "ca", "b"])[0]


@pytest.mark.parametrize("limit", [1e-9, 0.01, 0.1, 100.0])
def test_clip_value_brings_each_gradient_inside(limit):
    trainer, data = bigram()
    batch = trainer.model.make_batch(data)
    batch.take(np.arange(3), 3.0)
    trainer.loop.forward(batch)
    trainer.loop.backward()
    before = trainer.model.grads.flat.copy()
    assert trainer.loop.clip_value(limit) == (np.abs(before) > limit).sum()
    assert np.array_equal(trainer.model.grads.flat, np.clip(before, -limit, limit))


@pytest.mark.parametrize("clip_norm, clip_value", [(math.inf, math.inf), (1.5, math.inf), (math.inf, 0.4)])
def test_clip_value_in_the_compiled_loop(clip_norm, clip_value):
    """Many steps in one call: the same bits as move by move; norms before clipping; which steps were clipped."""
    (trainer, data), (twin, _) = bigram(), bigram()
    steps = 25
    losses, norms, clipped = np.empty(steps), np.empty(steps), np.full(steps, 7, np.uint8)
    indices, splits = np.arange(steps) % 3, np.arange(steps + 1)
    lrs = np.full(steps, 0.5)
    batch = trainer.model.make_batch(data)
    taken = trainer.loop.run(batch, indices, splits, 1, lrs, clip_norm, losses, norms, clip_value, clipped)
    assert taken == steps
    for step in range(steps):
        batch.take(indices[step : step + 1], 1.0)
        twin.loop.zero_grad()
        assert twin.loop.forward(batch) == losses[step]
        twin.loop.backward()
        g = twin.model.grads.flat
        norm = twin.loop.grad_norm()
        assert norm == norms[step]
        assert clipped[step] == (norm > clip_norm or np.abs(g).max() > clip_value)
        if norm > clip_norm:
            twin.loop.scale_grads(clip_norm / norm)
        if clip_value < math.inf:
            twin.loop.clip_value(clip_value)
        twin.loop.step(0.5)
    assert np.array_equal(trainer.model.params.flat, twin.model.params.flat)
    assert clipped.any() == (min(clip_norm, clip_value) < math.inf)
    assert not clipped.all()


@pytest.mark.parametrize("value, clip_value, taken", [
    (1e200, math.inf, 0), (1e200, 1.0, 1), (1e200, 1e199, 0), (math.nan, 1.0, 0),
])
def test_a_gradient_too_large_to_square_can_be_clipped_by_value(value, clip_value, taken):
    """A gradient too large to be squared can be clipped; one that is not finite never is."""
    trainer, data = bigram()
    trainer.model.params["wte"][0] = value      # the gradient of lm_head grows with it, the logits stay 0
    trainer.model.params["lm_head"][:] = 0.0
    before = trainer.model.params.flat.copy()
    batch, record = trainer.model.make_batch(data), [np.empty(1), np.empty(1)]
    assert taken == trainer.loop.run(batch, np.arange(1), np.arange(2), 1, np.ones(1), math.inf, *record, clip_value)
    assert np.array_equal(trainer.model.params.flat, before, equal_nan=True) == (not taken)
    assert not trainer.model.grads.flat.any()


def test_an_infinite_loss_is_refused_where_its_gradient_is_finite():
    trainer, data = bigram()
    params = trainer.model.params
    params.flat[:] = 0.0
    params["wte"][:, 0] = 2.0
    params["lm_head"][1, 0] = -1.7e308          # the logit of "b" overflows; what clipping leaves of its gradient is 1
    before, record = params.flat.copy(), [np.empty(1), np.empty(1)]
    batch = trainer.model.make_batch(data)
    assert trainer.loop.run(batch, np.arange(1), np.arange(2), 1, np.ones(1), 1.0, *record) == 0
    assert record[0][0] == math.inf
    assert np.array_equal(params.flat, before)


def test_the_loop_refuses_a_step_without_examples():
    trainer, data = bigram()
    with pytest.raises(ValueError, match="step 1 has no examples"):
        trainer.loop.run(trainer.model.make_batch(data), np.arange(1), np.array([0, 1, 1]), 1, np.zeros(2), math.inf,
                         np.empty(2), np.empty(2))


def test_the_loop_refuses_too_short_a_record_of_clipping():
    trainer, data = bigram()
    with pytest.raises(ValueError, match=r"clipped \(1\) must hold 2 steps"):
        trainer.loop.run(trainer.model.make_batch(data), np.arange(2), np.arange(3), 1, np.zeros(2), math.inf,
                         np.empty(2), np.empty(2), 1.0, np.empty(1, np.uint8))


def test_the_compiled_optimiser_knows_its_sizes():
    for states, grads in [([np.zeros(2)], None), ([], [np.zeros(4)])]:
        with pytest.raises(ValueError, match="an array of 3 values"):
            _core.variant.SGD([np.zeros(3)], [states], [0.0], grads, 0.5, 0.0, False)
    with pytest.raises(TypeError, match="not 'NoneType'"):
        _core.variant.SGD([np.zeros(3)], [[None]], [0.0], None, 0.5, 0.0, False)
    core = fl.SGD(params=[np.zeros(3)])._core
    with pytest.raises(ValueError, match="0 gradients for 1 arrays"):
        core.step_with([], 0.1, True)
    assert core.step_with([np.zeros(4)], 0.1, True) == (0, None)


@pytest.mark.parametrize("grad", [np.zeros(33, np.uint8)[1:].view(np.float64), memoryview(bytearray(33))[1:].cast("d")])
def test_an_unaligned_gradient_is_refused(grad):
    with pytest.raises(ValueError, match=r"grads\[0\] begins at address"):
        fl.SGD(params=[np.zeros(4)]).step([grad])
