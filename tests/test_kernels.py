"""Every kernel against its NumPy twin, and every check of its arguments."""

import array
import ast
import hashlib
import inspect
from pathlib import Path

import numpy as np
import pytest

import fastloop as fl
from fastloop import _core, kernels, reference

NAMES = [name for name, f in vars(kernels).items() if inspect.isfunction(f) and f.__module__ == kernels.__name__
         and not name.startswith("_")]
# (N, V, D): one of everything, the default job, whole tiles, and sizes that are multiples of nothing.
SIZES = [(1, 1, 1), (7, 27, 16), (64, 256, 64), (9, 129, 5), (19, 300, 13), (257, 5, 8), (9, 11, 300)]
OVERWRITTEN = {"embedding_forward": ["x"], "logits_forward": ["logits"], "logits_backward": ["dx"],
               "cross_entropy_forward": ["losses"], "cross_entropy_backward": ["dlogits"]}
WRITTEN = {**OVERWRITTEN, "embedding_backward": ["dwte", "dwpe"], "logits_backward": ["dx", "dlm_head"],
           "adam_step": ["param", "m", "v"], "grad_norm": []}
ADAM = dict(lr=0.01, beta1=0.85, beta2=0.99, eps=1e-8, t=3)


def make(name, N=7, V=27, D=16, scale=1.0, dtype=np.float64):
    """Arguments for the kernel `name`: {argument: array}; what it overwrites is filled with NaN."""
    rng = np.random.default_rng([N, V, D])
    T = 8

    def real(*shape):
        return (scale * rng.normal(size=shape)).astype(dtype)

    make_one = {
        "inputs": lambda: rng.integers(0, V, N), "positions": lambda: rng.integers(0, T, N),
        "targets": lambda: rng.integers(0, V, N), "wte": lambda: real(V, D), "wpe": lambda: real(T, D),
        "lm_head": lambda: real(V, D), "x": lambda: real(N, D), "logits": lambda: real(N, V),
        "losses": lambda: np.zeros(N), "dx": lambda: real(N, D), "dwte": lambda: real(V, D),
        "dwpe": lambda: real(T, D),
        "dlm_head": lambda: real(V, D), "dlogits": lambda: real(N, V), "grad": lambda: real(V, D),
        "param": lambda: real(V, D), "m": lambda: real(V, D), "v": lambda: real(V, D) ** 2,
    }
    arguments = {a: make_one[a]() for a in inspect.signature(getattr(kernels, name)).parameters if a in make_one}
    for a in OVERWRITTEN.get(name, ()):
        arguments[a].fill(np.nan)
    return arguments


def call(module, name, arguments, **options):
    if name == "adam_step":
        options = {**ADAM, **options}
    return getattr(module, name)(*arguments.values(), **options)


def digest(arguments):
    h = hashlib.sha256()
    for a in arguments.values():
        if isinstance(a, np.ndarray):
            h.update(a.tobytes())
    return h.hexdigest()


def assert_same(name, expected, result, dtype=np.float64):
    """Arrays after both were called: inputs unchanged, outputs within 1e-12 (float32: 1e-5), no NaN left."""
    rel = 1e-12 if dtype == np.float64 else 1e-5
    for a in expected:
        assert np.isfinite(result[a]).all(), a
        if a in WRITTEN[name]:
            # The absolute part is for elements of sums that happen to cancel.
            atol = (1e-14 if dtype == np.float64 else 1e-6) * abs(expected[a]).max(initial=0.0)
            np.testing.assert_allclose(result[a], expected[a], rtol=rel, atol=atol, err_msg=a)
        else:
            np.testing.assert_array_equal(result[a], expected[a], err_msg=a)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_kernel_equals_its_twin(variant, dtype, name, size):
    expected, result = make(name, *size, dtype=dtype), make(name, *size, dtype=dtype)
    expected_value, value = call(reference, name, expected), call(kernels, name, result)
    rel = 1e-12 if dtype == np.float64 else 1e-6
    assert value == expected_value or value == pytest.approx(expected_value, rel=rel, abs=0.0)
    assert_same(name, expected, result, dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["cross_entropy_forward", "cross_entropy_backward"])
def test_large_logits(variant, name, size):
    expected, result = make(name, *size, scale=300.0), make(name, *size, scale=300.0)
    call(reference, name, expected)
    call(kernels, name, result)
    # Where exp would give less than 4e-308, the kernels' gives 0.
    for a in WRITTEN[name]:
        expected[a][abs(expected[a]) < 1e-300] = 0.0
        result[a][abs(result[a]) < 1e-300] = 0.0
    assert_same(name, expected, result)


@pytest.mark.parametrize("n", [1, 7, 8, 1000])
@pytest.mark.parametrize("options", [
    {"t": 1}, {"t": 10**6}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled": True}, {"grad_scale": 0.25},
    {"zero_grad": True}, {"beta1": 0, "beta2": 0}, {"lr": 0, "weight_decay": 0.1, "decoupled": True},
    {"weight_decay": 0.1, "grad_scale": 3.0, "zero_grad": True},
], ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_adam_options(variant, dtype, n, options):
    expected, result = (make("adam_step", V=n, D=1, dtype=dtype) for _ in range(2))
    call(reference, "adam_step", expected, **options)
    call(kernels, "adam_step", result, **options)
    assert not options.get("zero_grad") or not result["grad"].any()
    assert_same("adam_step", expected, result, dtype)


@pytest.mark.parametrize("eps", [1e-8, 1e-12])
@pytest.mark.parametrize("dtype, sizes", [(np.float64, (1e-160, 1e-140)), (np.float32, (1e-21, 1e-18, 3e-17, 1e-15))])
def test_adam_of_gradients_whose_squares_vanish(variant, dtype, sizes, eps):
    for scale in sizes:
        expected, result = (make("adam_step", V=100, D=1, scale=scale, dtype=dtype) for _ in range(2))
        for arguments in (expected, result):
            arguments["param"][:] = 0.0         # so that the whole of a step shows
        with np.errstate(under="ignore"):
            call(reference, "adam_step", expected, eps=eps)
        call(kernels, "adam_step", result, eps=eps)
        np.testing.assert_allclose(result["param"], expected["param"], rtol=1e-5)
        np.testing.assert_allclose(result["m"], expected["m"], rtol=1e-5)


@pytest.mark.parametrize("eps", [1e-46, 1e39])
def test_an_eps_that_float32_cannot_hold_is_refused(eps):
    arguments = make("adam_step", dtype=np.float32)
    before = digest(arguments)
    with pytest.raises(ValueError, match=r"^eps = .* is (0.0|inf) in float32, expected a positive number there"):
        call(kernels, "adam_step", arguments, eps=eps)
    assert digest(arguments) == before


def test_repeated_ids_add_up(variant):
    dx = np.ones((40, 3))
    dwte, dwpe = np.ones((2, 3)), np.zeros((1, 3))
    kernels.embedding_backward(np.zeros(40, np.int64), np.zeros(40, np.int64), dx, dwte, dwpe)
    assert dwte.tolist() == [[41.0] * 3, [1.0] * 3]
    assert dwpe.tolist() == [[40.0] * 3]


def test_no_rows(variant):
    for name in NAMES:
        arguments = {a: np.empty(0) for a in make(name)} if name in ("adam_step", "grad_norm") else make(name, N=0)
        before = digest(arguments)
        if name == "cross_entropy_backward":
            with pytest.raises(ValueError, match=r"^logits has shape \(0, 27\); expected at least one row"):
                call(kernels, name, arguments)
        else:
            assert call(kernels, name, arguments) == (0.0 if name == "grad_norm" else None)
        assert digest(arguments) == before


# --- the boundary ---------------------------------------------------------------------------------------------


def strided(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def unaligned(a):
    b = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    b[...] = a
    return b


FAULTS = {
    "None": (lambda a: None, TypeError, "is a NoneType"),
    "list": (lambda a: a.tolist(), TypeError, "is a list"),
    "scalar": (lambda a: 1.0, TypeError, "is a float"),
    "half the bits": (lambda a: a.astype(f"{a.dtype.kind}4"), TypeError, r"has dtype (float|int)32; expected \1(64)"),
    "big-endian": (lambda a: a.astype(a.dtype.newbyteorder(">")), TypeError, "has dtype >(f8|i8); expected"),
    "strided": (strided, ValueError, r"has strides \(.*16,?\)"),
    "unaligned": (unaligned, ValueError, r"begins at address 0x.*; expected a multiple of 8"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name, argument", [(name, a) for name in NAMES for a in make(name)])
def test_bad_arrays_are_refused(name, argument, fault):
    spoil, error, message = FAULTS[fault]
    arguments = make(name)
    arguments[argument] = spoil(arguments[argument])
    before = digest(arguments)
    first = next(a for a, x in make(name).items() if x.dtype == np.float64)
    if fault == "half the bits" and argument == first:      # the first says what the others must be
        if name in ("grad_norm", "cross_entropy_forward"):      # there are none
            call(kernels, name, arguments)
            return
        argument, message = r"\w+", "has dtype float64; expected float32"
    with pytest.raises(error, match=f"^{argument} {message}"):
        call(kernels, name, arguments)
    assert digest(arguments) == before


@pytest.mark.parametrize("name, argument", [(name, a) for name in NAMES for a in WRITTEN[name]])
def test_read_only_outputs_are_refused(name, argument):
    arguments = make(name)
    arguments[argument].flags.writeable = False
    before = digest(arguments)
    with pytest.raises(ValueError, match=f"^{argument} is read-only"):
        call(kernels, name, arguments)
    assert digest(arguments) == before


@pytest.mark.parametrize("name", NAMES)
def test_read_only_inputs_are_taken(variant, name):
    arguments = make(name)
    for a in set(arguments) - set(WRITTEN[name]):
        arguments[a].flags.writeable = False
    call(kernels, name, arguments)
    if name == "adam_step":
        with pytest.raises(ValueError, match=r"^grad is read-only"):
            call(kernels, name, arguments, zero_grad=True)


# What may be longer than the others say: a table may have more rows than the ids reach.
FREE = {("embedding_forward", "wte", 0), ("embedding_forward", "wpe", 0), ("embedding_backward", "dwte", 0),
        ("embedding_backward", "dwpe", 0), ("cross_entropy_forward", "logits", 1),
        ("grad_norm", "grad", 0), ("grad_norm", "grad", 1)}


@pytest.mark.parametrize("more", [1, -1])
@pytest.mark.parametrize(
    "name, argument, axis", [(name, a, i) for name in NAMES for a, x in make(name).items() for i in range(x.ndim)]
)
def test_sizes_that_do_not_fit_are_refused(name, argument, axis, more):
    arguments = make(name)
    a = arguments[argument]
    arguments[argument] = a.repeat(2, axis).take(range(a.shape[axis] + more), axis)
    for ids in {"inputs", "positions", "targets"} & set(arguments):
        arguments[ids][:] = 0
    before = digest(arguments)
    if (name, argument, axis) in FREE:
        call(kernels, name, arguments)
        return
    with pytest.raises(ValueError, match=r"has shape \(.*\); expected \(.*\)"):
        call(kernels, name, arguments)
    assert digest(arguments) == before


@pytest.mark.parametrize("name, argument", [(name, a) for name in NAMES for a in make(name) if name != "grad_norm"])
def test_another_number_of_axes_is_refused(name, argument):
    arguments = make(name)
    arguments[argument] = arguments[argument][..., None]
    before = digest(arguments)
    with pytest.raises(ValueError, match=r"has shape \(.*\); expected \(.*\)"):
        call(kernels, name, arguments)
    assert digest(arguments) == before


@pytest.mark.parametrize("name, argument", [(name, a) for name in NAMES for a, x in make(name).items() if x.ndim == 2])
def test_no_axis_but_the_first_may_be_empty(name, argument):
    arguments = make(name)
    arguments[argument] = np.empty((len(arguments[argument]), 0))
    with pytest.raises(ValueError, match=r"has shape \(.*\); (only the first axis may be empty|expected)"):
        call(kernels, name, arguments)


@pytest.mark.parametrize("name, argument, limit", [
    ("embedding_forward", "inputs", 27), ("embedding_forward", "positions", 8), ("embedding_backward", "inputs", 27),
    ("embedding_backward", "positions", 8), ("cross_entropy_forward", "targets", 27),
    ("cross_entropy_backward", "targets", 27),
])
def test_ids_out_of_range_are_refused(name, argument, limit):
    for bad in (-1, limit, 2**63 - 1, -(2**63)):
        arguments = make(name)
        arguments[argument][[3, 5]] = bad
        before = digest(arguments)
        with pytest.raises(IndexError, match=rf"^{argument}\[3\] = {bad} is outside \[0, {limit}\)$"):
            call(kernels, name, arguments)
        assert digest(arguments) == before


@pytest.mark.parametrize("name, output, other", [
    (name, output, a) for name in NAMES for output in WRITTEN[name] for a in make(name) if a != output
])
def test_overlapping_outputs_are_refused(name, output, other):
    arguments = make(name)
    sizes = [arguments[a].nbytes for a in (output, other)]
    memory = np.zeros(sum(sizes), np.uint8)

    def place(start):
        for a, at, size in zip((output, other), (0, start), sizes, strict=True):
            arguments[a] = memory[at:at + size].view(arguments[a].dtype).reshape(arguments[a].shape)

    place(start=sizes[0] - 8)       # one value in common
    before = digest(arguments)
    with pytest.raises(ValueError, match=rf"^({output} and {other}|{other} and {output}) overlap in memory"):
        call(kernels, name, arguments)
    assert digest(arguments) == before
    place(start=sizes[0])           # neighbours
    call(kernels, name, arguments)


@pytest.mark.parametrize("option, value, error, interval", [
    ("lr", -1e-9, ValueError, r"\[0, inf\)"), ("lr", np.nan, ValueError, r"\[0, inf\)"),
    ("lr", np.inf, ValueError, r"\[0, inf\)"),
    ("beta1", 1.0, ValueError, r"\[0, 1\)"), ("beta1", -0.1, ValueError, r"\[0, 1\)"),
    ("beta2", 1.0, ValueError, r"\[0, 1\)"), ("beta2", np.nan, ValueError, r"\[0, 1\)"),
    ("eps", 0.0, ValueError, r"\(0, inf\)"), ("eps", np.inf, ValueError, r"\(0, inf\)"),
    ("weight_decay", -0.1, ValueError, r"\[0, inf\)"), ("weight_decay", np.inf, ValueError, r"\[0, inf\)"),
    ("grad_scale", np.nan, ValueError, r"\(-inf, inf\)"), ("grad_scale", -np.inf, ValueError, r"\(-inf, inf\)"),
    *((name, value, TypeError, None) for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "grad_scale")
      for value in ("0.1", None)),
])
def test_adam_refuses_numbers_out_of_range(option, value, error, interval):
    arguments = make("adam_step")
    before = digest(arguments)
    message = f"{option} = {value} is outside {interval}$" if interval else f"{option} = {value!r} is a "
    with pytest.raises(error, match=f"^{message}"):
        call(kernels, "adam_step", arguments, **{option: value})
    assert digest(arguments) == before


class Tensor:
    """Stands for another library's array: NumPy sees it through __array__, as a view or as a copy."""

    def __init__(self, values, copies=False):
        self.values, self.copies = values, copies

    def __array__(self, dtype=None, copy=None):
        if self.values is None:
            raise RuntimeError("it is on another device")
        return self.values.copy() if self.copies else self.values


def test_what_numpy_can_view_is_taken(variant):
    arrays = [np.ones(3) for _ in range(4)]
    kernels.adam_step(*map(Tensor, arrays), **{**ADAM, "t": 1})
    np.testing.assert_allclose(arrays[1], 0.99, rtol=1e-2)
    assert kernels.grad_norm(array.array("d", [3.0, 4.0])) == 5.0
    assert kernels.grad_norm(memoryview(np.array([[3.0], [4.0]]))) == 5.0
    assert kernels.grad_norm(np.array(-5.0)) == 5.0


def test_what_numpy_would_copy_is_refused():
    with pytest.raises(TypeError, match=r"^grad is a Tensor; expected an array that NumPy can view without a copy"):
        kernels.grad_norm(Tensor(np.ones(3), copies=True))
    with pytest.raises(TypeError, match=r"^grad cannot be viewed as an array: it is on another device"):
        kernels.grad_norm(Tensor(None))


@pytest.mark.parametrize("name", ["cross_entropy_forward", "cross_entropy_backward"])
def test_a_loss_that_is_not_finite_names_its_row(variant, name):
    arguments = make(name)
    arguments["targets"][4] = 2
    arguments["logits"][4, 2] = -np.inf
    arguments["logits"][6] = np.nan
    inputs = {a: arguments[a] for a in ("logits", "targets")}
    before = digest(inputs)
    with pytest.raises(FloatingPointError, match=r"^losses\[4\] = inf: targets\[4\] = 2, logits\[4, 2\] = -inf"):
        call(kernels, name, arguments)
    assert digest(inputs) == before
    if name == "cross_entropy_forward":
        assert np.isfinite(arguments["losses"]).tolist() == [True] * 4 + [False, True, False]


# --- names and signatures -------------------------------------------------------------------------------------


def untyped(function):
    """Its signature: names, kinds and defaults."""
    signature = inspect.signature(function)
    return [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]


@pytest.mark.parametrize("name", NAMES)
def test_twin_and_compiled_function_have_the_kernel_s_signature(variant, name):
    signature, twin = untyped(getattr(kernels, name)), untyped(getattr(reference, name))
    assert twin == signature
    assert list(inspect.signature(getattr(variant, name)).parameters) == [parameter.name for parameter in signature]


def test_every_kernel_is_here():
    assert NAMES == ["embedding_forward", "embedding_backward", "logits_forward", "logits_backward",
                     "cross_entropy_forward", "cross_entropy_backward", "adam_step", "grad_norm"]


def parameters(node):
    return [a.arg for a in node.args.args]


def test_the_stub_says_what_the_compiled_module_has(variant):
    declared, own = {}, {None, variant.__name__, "fastloop._core.core"}
    for name in ("core", "baseline"):
        stub = ast.parse(Path(_core.__file__).with_name(f"{name}.pyi").read_text())
        declared |= {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        declared |= {node.target.id: node for node in stub.body if isinstance(node, ast.AnnAssign)}
    public = {name for name, x in vars(variant).items()
              if not name.startswith("_") and not inspect.ismodule(x) and getattr(x, "__module__", None) in own}
    assert set(declared) == public
    for name, node in declared.items():
        compiled = getattr(variant, name)
        if isinstance(node, ast.FunctionDef):
            assert parameters(node) == list(inspect.signature(compiled).parameters), name
        if isinstance(node, ast.ClassDef):
            assert [base.id for base in node.bases] == [b.__name__ for b in compiled.__bases__ if b is not object]
            members = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef) and n.name[:2] != "__"}
            attributes = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
            assert {*members, *attributes} == {m for m in vars(compiled) if not m.startswith("_")}, name
            for member, n in members.items():
                if not n.decorator_list:
                    assert parameters(n) == list(inspect.signature(getattr(compiled, member)).parameters), member


@pytest.mark.parametrize("n", [1, 4096, 4097, 3 * 4096 + 5])
def test_the_norm_is_the_same_at_any_number_of_threads(n, many_threads):
    x = np.random.default_rng(n).normal(size=n)
    x[-1] = 1e3
    norms = set()
    for threads in (1, 2, 3, 8):
        fl.set_num_threads(threads)
        norms.add(kernels.grad_norm(x))
    assert len(norms) == 1
    assert norms.pop() == pytest.approx(np.linalg.norm(x), rel=1e-14)
