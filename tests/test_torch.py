"""fastloop.torch: Adam, AdamW and SGD beside torch.optim's, over torch's own list of inputs, schedulers and loops."""

import copy
import inspect
import io
import math
import pickle

import numpy as np
import pytest

import fastloop as fl

torch = pytest.importorskip("torch", reason="torch is not installed")
from fastloop import torch as ft  # noqa: E402

PAIRS = {
    "Adam": (ft.Adam, torch.optim.Adam), "AdamW": (ft.AdamW, torch.optim.AdamW), "SGD": (ft.SGD, torch.optim.SGD),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 2e-6}, torch.float64: {"rtol": 1e-11, "atol": 1e-12}}
KINDS = {
    "Adam": ("Adam", {}), "AdamW": ("AdamW", {"weight_decay": 0.1}), "SGD": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9, "dampening": 0.3}),
}


@pytest.fixture(params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


def tensors(dtype, shapes=((3, 4), (5,), (), (2, 3, 2), (0,), (1000,)), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def give_grads(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or TOLERANCE[a.dtype]))


def assert_same_state(ours, theirs):
    """Of two optimisers over parameters in the same order."""
    a, b = ours.state_dict(), theirs.state_dict()
    assert a["state"].keys() == b["state"].keys()
    for i, entry in b["state"].items():
        assert {k for k, v in a["state"][i].items() if v is not None} == {k for k, v in entry.items() if v is not None}
        for name, value in entry.items():
            if value is not None:
                torch.testing.assert_close(a["state"][i][name], value, **TOLERANCE[torch.float32])


# --- torch's own list

def inputs(name):
    common = pytest.importorskip("torch.testing._internal.common_optimizers", reason="needs expecttest")
    info = next(info for info in common.optim_db if info.optim_cls is getattr(torch.optim, name))
    return [pytest.param(name, given, id=f"{name}-{given.desc}") for given in info.optim_inputs_func(device="cpu")]


def listed():
    try:
        import expecttest  # noqa: F401
    except ImportError:
        return [pytest.param("", None, marks=pytest.mark.skip(reason="expecttest is not installed"))]
    return [row for name in PAIRS for row in inputs(name)]


@pytest.mark.parametrize("name, given", listed())
def test_torchs_own_inputs_give_torchs_results(name, given, dtype):
    ours, theirs = PAIRS[name]
    a, b = tensors(dtype), tensors(dtype)
    options = copy.deepcopy(given.kwargs)
    refused = [option for option in ("amsgrad", "capturable", "differentiable") if options.get(option)]
    if refused:
        with pytest.raises(ValueError, match=f"{refused[0]} = True is not offered by fastloop.torch.{name}"):
            ours(a, **options)
        return
    one, two = ours(a, **options), theirs(b, **options)
    for step in range(20):
        give_grads(a, step)
        give_grads(b, step)
        one.step()
        two.step()
    assert_same(a, b)
    assert_same_state(one, two)


@pytest.mark.parametrize("name", PAIRS)
def test_the_arguments_are_torchs_with_their_defaults(name):
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in PAIRS[name])
    assert {k: v.default for k, v in ours.items() if k != "check_finite"} == {k: v.default for k, v in theirs.items()}
    assert [k for k in ours if ours[k].kind is not inspect.Parameter.KEYWORD_ONLY] == [
        k for k in theirs if theirs[k].kind is not inspect.Parameter.KEYWORD_ONLY]
    params = tensors(torch.float32)
    assert PAIRS[name][0](params).defaults == PAIRS[name][1](params).defaults
    assert isinstance(PAIRS[name][0](params), PAIRS[name][1])


# --- loops, groups, schedulers

def net(dtype, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).to(dtype)


def groups(model, name):
    last = {"lr": 0.03, "weight_decay": 0.2, "maximize": True}
    last |= {"momentum": 0.5, "nesterov": True} if name == "SGD" else {"betas": (0.5, 0.8), "eps": 1e-3}
    return [{"params": model[0].parameters()}, {"params": model[2].parameters(), **last}]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_with_groups_gives_torchs_results(kind, set_to_none, dtype):
    name, options = KINDS[kind]
    X = torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
    models, losses = [net(dtype), net(dtype)], [[], []]
    for model, cls, kept in zip(models, PAIRS[name], losses, strict=True):
        optimizer = cls(groups(model, name), lr=0.01, **options)
        extra = torch.nn.Parameter(torch.ones(3, dtype=dtype))
        for step in range(30):
            if step == 10:
                optimizer.add_param_group({"params": [extra], "lr": 0.5})
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = (model(X) ** 2).mean() + (extra.square().sum() if step > 15 else 0.0)
            loss.backward()
            optimizer.step()
            kept.append(loss.item())
    np.testing.assert_allclose(*losses, rtol=1e-4 if dtype == torch.float32 else 1e-11)
    rtol = 1e-3 if dtype == torch.float32 else 1e-10
    assert_same(models[0].parameters(), models[1].parameters(), rtol=rtol, atol=1e-5)


def schedulers():
    s = torch.optim.lr_scheduler
    made = {
        "LambdaLR": lambda o: s.LambdaLR(o, lambda t: 0.9**t),
        "MultiplicativeLR": lambda o: s.MultiplicativeLR(o, lambda t: 0.9),
        "StepLR": lambda o: s.StepLR(o, 3), "MultiStepLR": lambda o: s.MultiStepLR(o, [2, 5]),
        "ConstantLR": lambda o: s.ConstantLR(o), "LinearLR": lambda o: s.LinearLR(o),
        "ExponentialLR": lambda o: s.ExponentialLR(o, 0.9), "PolynomialLR": lambda o: s.PolynomialLR(o, 10, 2.0),
        "CosineAnnealingLR": lambda o: s.CosineAnnealingLR(o, 10),
        "CosineAnnealingWarmRestarts": lambda o: s.CosineAnnealingWarmRestarts(o, 4),
        "CyclicLR": lambda o: s.CyclicLR(o, 1e-3, 0.1, 3, cycle_momentum="momentum" in o.defaults),
        "OneCycleLR": lambda o: s.OneCycleLR(o, 0.1, 20),
        "ReduceLROnPlateau": lambda o: s.ReduceLROnPlateau(o, patience=1),
        "SequentialLR": lambda o: s.SequentialLR(o, [s.ConstantLR(o), s.ExponentialLR(o, 0.9)], [4]),
        "ChainedScheduler": lambda o: s.ChainedScheduler([s.ConstantLR(o), s.ExponentialLR(o, 0.9)]),
        "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05),
    }
    return made


@pytest.mark.parametrize("scheduler", schedulers())
@pytest.mark.parametrize("kind", ["AdamW", "momentum"])
@pytest.mark.filterwarnings("ignore")       # that the epoch parameter of SequentialLR is deprecated
def test_every_scheduler_drives_it(scheduler, kind):
    name, options = KINDS[kind]
    params, rates = [tensors(torch.float64), tensors(torch.float64)], []
    for mine, cls in zip(params, PAIRS[name], strict=True):
        optimizer = cls(mine, lr=0.01, **options)
        schedule = schedulers()[scheduler](optimizer)
        rates.append([])
        for step in range(15):
            give_grads(mine, step)
            optimizer.step()
            rates[-1].append(optimizer.param_groups[0]["lr"])
            schedule.step(1.0) if scheduler == "ReduceLROnPlateau" else schedule.step()
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1
    assert_same(*params)


def test_no_scheduler_of_torchs_is_left_out():
    s = torch.optim.lr_scheduler
    known = {name for name, x in vars(s).items() if inspect.isclass(x) and issubclass(x, s.LRScheduler)
             and not name.startswith("_") and x is not s.LRScheduler}
    assert known | {"SWALR", "ReduceLROnPlateau", "ChainedScheduler", "SequentialLR"} == set(schedulers())


def test_a_learning_rate_may_be_a_tensor():
    a, b = tensors(torch.float64), tensors(torch.float64)
    lr = torch.tensor(0.01)
    one, two = ft.Adam(a, lr=lr), torch.optim.Adam(b, lr=0.01)
    for step in range(5):
        for optimizer, params in ((one, a), (two, b)):
            give_grads(params, step)
            optimizer.step()
        lr.mul_(0.5)
        two.param_groups[0]["lr"] *= 0.5
    assert_same(a, b, rtol=1e-6, atol=1e-7)     # of the float32 in lr


def test_closures_hooks_and_what_lightning_asks_of_an_optimizer():
    (w,) = params = tensors(torch.float64, [(3,)])
    optimizer = ft.SGD(params, lr=0.1)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        called.append("closure")
        return loss

    before = w.detach().clone()
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == before.square().sum().item()
    torch.testing.assert_close(w.detach(), before - 0.2 * before)
    assert called == ["before", "closure", "after"]
    assert optimizer.defaults["lr"] == 0.1
    assert dict(optimizer.state) == {}
    assert optimizer.param_groups[0]["params"] == params


def test_parameters_without_a_gradient_are_skipped_and_count_their_own_steps(dtype):
    a, b = tensors(dtype), tensors(dtype)
    one, two = ft.Adam(a), torch.optim.Adam(b)
    for step in range(9):
        for optimizer, params in ((one, a), (two, b)):
            give_grads(params, step)
            for i, p in enumerate(params):
                if (step + i) % 3 == 0 or (i == 1 and step < 5):
                    p.grad = None
            optimizer.step()
    assert_same(a, b)
    assert_same_state(one, two)
    assert {int(s["step"]) for s in one.state.values()} == {2, 6}


def test_no_gradient_at_all_is_no_step():
    params = tensors(torch.float32)
    optimizer = ft.Adam(params)
    optimizer.step()
    assert not optimizer.state


# --- state

@pytest.mark.parametrize("way", ["there", "back"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_state_goes_to_torch_and_back_in_mid_run(kind, way, dtype):
    name, options = KINDS[kind]
    first, second = PAIRS[name] if way == "there" else PAIRS[name][::-1]
    a, b = tensors(dtype), tensors(dtype)
    whole, half = second(a, lr=0.02, **options), first(b, lr=0.02, **options)
    for step in range(10):
        give_grads(a, step)
        whole.step()
        give_grads(b, step)
        if step == 5:
            file = io.BytesIO()
            torch.save(half.state_dict(), file)
            file.seek(0)
            half = second(b, lr=0.5)
            half.load_state_dict(torch.load(file))
        half.step()
    assert_same(a, b)
    assert half.param_groups[0]["lr"] == 0.02


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_go_on_to_the_same_bits(kind, copied):
    name, options = KINDS[kind]
    a = tensors(torch.float64)
    optimizer = PAIRS[name][0](a, check_finite=False, **options)
    give_grads(a, 0)
    optimizer.step()
    b, twin = copied((a, optimizer))
    assert twin.check_finite is False
    for params, mine in ((a, optimizer), (b, twin)):
        give_grads(params, 1)
        mine.step()
    assert_same(a, b, rtol=0, atol=0)
    assert all(x.data_ptr() != y.data_ptr() for x, y in zip(a, b, strict=True) if x.numel())


def test_the_bits_are_those_of_fastloops_optimisers_over_arrays():
    for name, (cls, _) in PAIRS.items():
        params = tensors(torch.float64)
        arrays = [p.detach().numpy().copy() for p in params]
        one, two = cls(params, lr=0.01, weight_decay=0.1), getattr(fl, name)(params=arrays, lr=0.01, weight_decay=0.1)
        for step in range(20):
            give_grads(params, step)
            one.step()
            two.step([p.grad.numpy() for p in params])
        for p, array in zip(params, arrays, strict=True):
            assert p.detach().numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_the_same_at_any_number_of_threads(kind, dtype, many_threads):
    name, options = KINDS[kind]
    found = set()
    for n in (1, 2, 3, 8):
        fl.set_num_threads(n)
        params = tensors(dtype, [(100,), (7,), (3, 50), (1000,), (1,), (0,), (33,)])
        optimizer = PAIRS[name][0](params, **options)
        for step in range(5):
            give_grads(params, step)
            optimizer.step()
        found.add(b"".join(p.detach().numpy().tobytes() for p in params))
    assert len(found) == 1


# --- memory that moves

def test_storage_that_moves_between_steps_is_followed(dtype):
    a, b = tensors(dtype), tensors(dtype)
    one, two = ft.Adam(a, lr=0.1), torch.optim.Adam(b, lr=0.1)
    for step in range(8):
        for optimizer, params in ((one, a), (two, b)):
            give_grads(params, step)
            if step == 2:
                for p in params:
                    p.data = p.data.clone()
            if step == 3:
                for p in params:
                    p.grad.data = p.grad.data * 2.0
            if step == 4:
                state = optimizer.state[params[0]]
                state["exp_avg"] = state["exp_avg"] * 0.5
            if step == 5:
                optimizer.state[params[1]]["exp_avg_sq"].data = optimizer.state[params[1]]["exp_avg_sq"].data.clone()
            if step == 6:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            if step == 7:
                del optimizer.state[params[3]]
            optimizer.step()
    assert_same(a, b)


def test_another_parameter_at_the_same_place_is_seen():
    w = torch.nn.Parameter(torch.zeros(4))
    optimizer = ft.SGD([w], lr=1.0)
    w.grad = torch.ones(4)
    optimizer.step()
    head = torch.nn.Parameter(w.data[:2])
    head.grad = torch.ones(2)
    optimizer.param_groups[0]["params"][0] = head
    optimizer.step()
    assert w.tolist() == [-2.0, -2.0, -1.0, -1.0]


def test_a_parameter_that_changes_its_dtype_is_followed_or_refused():
    params = tensors(torch.float32)
    optimizer = ft.SGD(params, lr=0.1)
    give_grads(params, 0)
    optimizer.step()
    for p in params:
        p.grad = None
        p.data = p.data.double()
    give_grads(params, 1)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert_same(params, [b - 0.1 * p.grad for b, p in zip(before, params, strict=True)])
    params[0].data = params[0].data.half()
    with pytest.raises(TypeError, match=r"torch\.float16"):
        optimizer.step()


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "permuted"])
def test_dense_layouts_of_every_kind_are_updated(layout, dtype):
    def laid_out(x):
        return {
            "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
            "transposed": lambda: x.transpose(0, 1).contiguous().transpose(0, 1),
            "permuted": lambda: x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
        }[layout]()

    start = torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    a, b = [torch.nn.Parameter(laid_out(start.clone()))], [torch.nn.Parameter(start.clone())]
    one, two = ft.Adam(a), torch.optim.Adam(b)
    assert not a[0].is_contiguous()
    for step in range(4):
        for params, optimizer in ((a, one), (b, two)):
            give_grads(params, step)
            if step == 2:
                params[0].grad = laid_out(params[0].grad)
            optimizer.step()
    assert_same(a, b)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    one.load_state_dict(copy.deepcopy(two.state_dict()))
    for params, optimizer in ((a, one), (b, two)):
        give_grads(params, 9)
        optimizer.step()
    assert_same(a, b)


def test_gradients_of_odd_strides_are_read_right(dtype):
    p = torch.nn.Parameter(torch.zeros(4, 3, dtype=dtype))
    optimizer = ft.SGD([p], lr=1.0)
    for grad in (torch.arange(12, dtype=dtype).reshape(3, 4).T, torch.ones((), dtype=dtype).expand(4, 3),
                 torch.arange(24, dtype=dtype).reshape(4, 6)[:, ::2]):
        p.data.zero_()
        p.grad = grad
        optimizer.step()
        assert torch.equal(p.detach(), -grad)


def test_backward_through_an_old_graph_is_noticed():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = ft.SGD([w], lr=0.1)
    loss = (w * w).sum()
    w.grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- the guard, and what is refused

@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_finite_raises_before_any_tensor_changes(kind, bad, dtype):
    name, options = KINDS[kind]
    for place in (0, 3, 999):
        a, b = tensors(dtype), tensors(dtype)
        guarded, good = (PAIRS[name][0](params, **options) for params in (a, b))
        for step in range(3):
            give_grads(a, step)
            give_grads(b, step)
            before = [p.detach().clone() for p in a]
            kept = a[5].grad[place].item()
            a[5].grad[place] = bad
            with pytest.raises(fl.DivergenceError, match=r"param_groups\[0\]\['params'\]\[5\] is not finite"):
                guarded.step()
            assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True))
            a[5].grad[place] = kept
            guarded.step()
            good.step()
            assert_same(a, b, rtol=0, atol=0)


def test_the_check_may_be_left_out():
    params = tensors(torch.float32)
    optimizer = ft.Adam(params, check_finite=False)
    give_grads(params, 0)
    params[0].grad[0, 0] = math.nan
    optimizer.step()
    assert torch.isnan(params[0][0, 0])
    assert torch.isfinite(params[1]).all()


def test_a_named_parameter_is_named():
    model = net(torch.float32)
    optimizer = ft.Adam(model.named_parameters())
    model(torch.full((1, 4), math.inf)).sum().backward()
    with pytest.raises(fl.DivergenceError, match=r"\(0\.weight\) is not finite"):
        optimizer.step()


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("make, words", [
    (lambda: torch.zeros(3, dtype=torch.bfloat16), "params[0] has dtype torch.bfloat16, expected float32 or float64"),
    (lambda: torch.zeros(3, dtype=torch.complex64), "params[0] has dtype torch.complex64"),
    (lambda: torch.zeros(3, device="meta"), "params[0] is on meta, expected a tensor on the CPU"),
    (lambda: torch.zeros(3, 3).to_sparse(), "params[0] is torch.sparse_coo, expected a dense tensor"),
    (lambda: torch.zeros(6)[::2], "params[0] has strides (2,)"),
    (lambda: torch.zeros(1).expand(3), "params[0] has strides (0,)"),
])
def test_a_tensor_that_cannot_be_updated_is_refused_when_the_group_is_added(name, make, words):
    cls = PAIRS[name][0]
    optimizer = cls(tensors(torch.float32))
    for call in (lambda: cls([make()]), lambda: optimizer.add_param_group({"params": [make()]}),
                 lambda: cls([{"params": [("w", make())]}])):
        with pytest.raises(TypeError) as caught:
            call()
        assert words in str(caught.value)
        assert "torch.optim's can" in str(caught.value)
    assert len(optimizer.param_groups) == 1


def test_options_that_are_not_offered_are_refused_by_name_also_in_a_state():
    params = tensors(torch.float32)
    for option in ("amsgrad", "capturable", "differentiable"):
        for cls in (ft.Adam, ft.AdamW):
            with pytest.raises(ValueError, match=f"{option} = True is not offered by fastloop.torch.Adam"):
                cls(params, **{option: True})
            with pytest.raises(ValueError, match=f"{option} = True"):
                cls([{"params": params, option: True}])
    theirs = torch.optim.Adam(params, amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad = True"):
        ft.Adam(params).load_state_dict(theirs.state_dict())
    for option in ("foreach", "fused"):
        ft.Adam(params, **{option: True})


def test_a_sparse_gradient_is_refused_before_anything_changes():
    table = torch.nn.Embedding(5, 2, sparse=True)
    other = torch.nn.Parameter(torch.ones(2))
    optimizer = ft.Adam([other, *table.parameters()])
    (table(torch.tensor([1])).sum() + other.sum()).backward()
    with pytest.raises(TypeError, match=r"a gradient is torch\.sparse_coo, expected a dense tensor"):
        optimizer.step()
    assert torch.equal(other.detach(), torch.ones(2))


def test_a_state_that_does_not_fit_its_parameter_is_refused():
    params = tensors(torch.float32)
    optimizer = ft.Adam(params)
    give_grads(params, 0)
    optimizer.step()
    optimizer.state[params[0]]["exp_avg"] = torch.zeros(2)
    with pytest.raises(TypeError, match=r"exp_avg is \(2,\) of torch.float32, its parameter \(3, 4\)"):
        optimizer.step()


def test_parameters_that_share_memory_are_refused():
    whole = torch.zeros(6)
    params = [torch.nn.Parameter(whole[:4]), torch.nn.Parameter(whole[2:])]
    optimizer = ft.SGD(params, lr=0.1)
    give_grads(params, 0)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"of shapes \(4,\) and \(4,\), overlap in memory"):
            optimizer.step()
