"""Is the gradient right?  Analytic gradients against numerical ones, for fastloop's models and for users' own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from . import _core
from ._check import number, whole
from ._check import seed as checked_seed

if TYPE_CHECKING:
    from numpy.random import Generator

    from ._types import Array, Number, Tensors, Whole
    from .models import Model

    Slopes = Callable[[Array, int], Iterator[tuple[float, float]]]      # with their round-off

EPS = float(np.finfo(np.float64).eps)
COMPLEX_STEP = 1e-30
EPS_FLOAT32, TOL_FLOAT32 = float(np.finfo(np.float32).eps), 1e-4
STEP = 2.0**-17     # about the cube root of EPS: truncation, h^2, balances rounding, eps / h

# The derivative is the sum of weight times loss(p + offset h), over h; each formula as pairs (offset, weight).  Those
# from one side do not see a kink (ReLU, max) on the other.
CENTRAL = ((1, 0.5), (-1, -0.5))
FORWARD = ((0, -1.5), (1, 2.0), (2, -0.5))
BACKWARD = ((0, 1.5), (-1, -2.0), (-2, 0.5))


class GradCheck:
    """The outcome of a check; true where no gradient is wrong.

    errors: dict of name -> largest error in that tensor, relative to its largest numerical gradient; infinite where
    something is not a number.  worst: dict of name -> (index, analytic, numerical) where that error is.
    max_error: the largest of errors.  wrong: names of the tensors with an error beyond tol (and the rounding of the
    differences).  ok: whether there are none.
    method: "complex step" or "central differences".  tol: as used.  checked: elements compared.
    """

    method: str
    tol: float
    checked: int
    errors: dict[str, float]
    worst: dict[str, tuple[tuple[int, ...], float, float]]
    wrong: list[str]
    max_error: float
    ok: bool

    def __init__(
        self, method: str, tol: float, errors: dict[str, float],
        worst: dict[str, tuple[tuple[int, ...], float, float]], wrong: list[str], checked: int,
    ) -> None:
        self.method, self.tol, self.checked = method, tol, checked
        self.errors, self.worst, self.wrong = errors, worst, wrong
        self.max_error, self.ok = max(errors.values()), not wrong

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        width = max(map(len, self.errors))
        verdict = "ok" if self.ok else f"WRONG in {len(self.wrong)} of {len(self.errors)} tensors"
        lines = [f"gradcheck {verdict}: {self.checked:,} elements by {self.method}, tol {self.tol:g}"]
        for name, error in self.errors.items():
            index, analytic, numerical = self.worst[name]
            lines.append(
                f"{'!' if name in self.wrong else ' '} {name:{width}}  error {error:.1e} at {list(index)}: "
                f"analytic {analytic:.9g}, numerical {numerical:.9g}"
            )
        return "\n".join(lines)


@overload
def gradcheck(
    model_or_loss: Model, batch_or_params: _core.variant.Batch, grads: None = None, *, tol: Number | None = None,
    samples: Whole | None = None, seed: Whole | None = 0,
) -> GradCheck: ...
@overload
def gradcheck(
    model_or_loss: Callable[[Any], Any], batch_or_params: Tensors, grads: Tensors, *, tol: Number | None = None,
    samples: Whole | None = None, seed: Whole | None = 0,
) -> GradCheck: ...
@np.errstate(under="ignore")    # of complex steps
def gradcheck(
    model_or_loss: Any, batch_or_params: Any, grads: Any = None, *, tol: Number | None = None,
    samples: Whole | None = None, seed: Whole | None = 0,
) -> GradCheck:
    """Compare analytic gradients with numerical ones; returns a GradCheck.

    gradcheck(model, batch): one of fastloop's models and a batch for it (trainer.batch(docs)), by central differences
    through the compiled forward pass.  Parameters and gradients are left as they were.  The gradient of a float32 model
    is compared with differences of its twin in float64, model.astype("float64") on the same batch: those of float32
    would drown in rounding.

    gradcheck(loss, params, grads): loss(params) is the user's function and returns one number; params is a float64
    array, or a list, tuple or dict of them; grads are the analytic gradients in the same form.  loss is given copies in
    that form.  Where it takes complex numbers the check is by complex step, exact to rounding, else by central
    differences; a test along one random direction decides which.

    samples: check at most so many elements of each tensor, drawn at random by `seed`; None for all.  Each costs two
    losses (by complex step, one).  tol: largest error, relative to the tensor's largest numerical gradient; default
    1e-10 by complex step, 1e-6 by differences, 1e-4 for a model of float32.  Differences are also allowed their own
    round-off: 4 eps / h times the sum of |weight loss| over the losses that they are made of; a gradient of float32
    its own, four times what an error in the last place of every parameter does to it.

    A wrong gradient raises nothing: print what is returned, or look at .ok.  Raises TypeError or ValueError for
    arguments that do not fit each other, and what loss raises.

    Complex step: Im loss(p + ih) / h (Martins, Sturdza and Alonso, ACM TOMS 2003), h = 1e-30.  Central differences:
    (loss(p + h) - loss(p - h)) / 2h, h = 2^-17 max(1, |p|); where they disagree the three-point formulas from either
    side are tried, so that a kink nearby is not taken for an error.
    """
    if tol is not None:
        tol = number("tol", tol, 0.0)
    if samples is not None:
        samples = whole("samples", samples)
    rng = np.random.default_rng(checked_seed(seed))
    if hasattr(model_or_loss, "make_core"):
        if grads is not None:
            raise TypeError("one of fastloop's models computes its gradients itself; grads are for a loss function")
        return _check_model(model_or_loss, batch_or_params, tol, samples, rng)
    if not callable(model_or_loss):
        raise TypeError(f"a model or a loss function is needed, got {model_or_loss!r}")
    if grads is None:
        raise TypeError("gradcheck(loss, params, grads): the gradients to check are missing")
    return _check_loss(model_or_loss, batch_or_params, grads, tol, samples, rng)


def _check_model(original: Any, batch: Any, tol: float | None, samples: int | None, rng: Generator) -> GradCheck:
    model = original
    if not isinstance(batch, _core.variant.Batch):
        raise TypeError(f"batch is a {type(batch).__name__}; expected what trainer.batch(...) makes")
    if hasattr(model, "gate"):
        model.gate.check_whole("gradcheck()")       # it writes into parameters and gradients
    loop = _core.variant.Loop(model.make_core(), None)
    params, grads = model.params.flat.copy(), model.grads.flat.copy()
    try:
        analytic, slack = _gradient(loop, model, batch), None
        if model.params.flat.dtype == np.float32:
            model, batch, tol = model.astype(np.float64), _widened(batch), TOL_FLOAT32 if tol is None else tol
            loop = _core.variant.Loop(model.make_core(), None)
            slack = _slack(loop, model, batch, rng)
        return _by_differences(dict(model.params), analytic, lambda: loop.forward(batch), tol, samples, rng, slack)
    finally:
        original.params.flat[:], original.grads.flat[:] = params, grads


def _gradient(loop: _core.variant.Loop, model: Any, batch: Any) -> dict[str, Array]:
    loop.zero_grad()
    loop.forward(batch)
    loop.backward()
    return {name: g.copy() for name, g in model.grads.items()}


def _slack(loop: _core.variant.Loop, model: Any, batch: Any, rng: Generator) -> dict[str, float]:
    """How far rounding in float32 may move the gradient of each tensor where it cancels to next to nothing: some times
    what an error of the last place in every parameter does to the gradient in float64."""
    before, exact = model.params.flat.copy(), _gradient(loop, model, batch)
    model.params.flat[:] += EPS_FLOAT32 * np.maximum(1.0, np.abs(before)) * rng.choice([-1.0, 1.0], before.size)
    moved = _gradient(loop, model, batch)
    model.params.flat[:] = before
    return {name: 4.0 * float(np.abs(moved[name] - exact[name]).max(initial=0.0)) for name in exact}


def _widened(batch: Any) -> Any:
    """The batch of a float32 model for one of float64: of arrays, one of the same rows; ids are ids."""
    if not isinstance(batch, _core.variant.ArrayBatch):
        return batch
    made: Any = batch.__reduce__()[1]           # as pickle takes them apart
    data, taken = made[1][0], made[2]
    made = data.__reduce__()[1]
    wide = [a.astype(np.float64) if a is not None and a.dtype == np.float32 else a for a in made[1]]
    return _core.remade("ArrayBatch", (_core.remade("ArrayData", tuple(wide)),), taken)


def _check_loss(
    loss: Callable[[Any], Any], params: Any, grads: Any, tol: float | None, samples: int | None, rng: Generator
) -> GradCheck:
    tensors = {name: _float64(name, p) for name, p in _leaves(params).items()}
    analytic = {name: _float64(f"the gradient of {name}", g) for name, g in _leaves(grads).items()}
    if analytic.keys() != tensors.keys():
        raise ValueError(f"grads hold {', '.join(analytic)}; params hold {', '.join(tensors)}")
    for name, p in tensors.items():
        if analytic[name].shape != p.shape:
            raise ValueError(f"the gradient of {name} has shape {analytic[name].shape}, {name} {p.shape}")

    def value(arrays: Iterable[Array]) -> float:
        return _number(loss(_like(params, arrays)))

    if not _takes_complex(loss, params, tensors, value, rng):
        return _by_differences(tensors, analytic, lambda: value(tensors.values()), tol, samples, rng)
    tensors = {name: p.astype(complex) for name, p in tensors.items()}

    def slopes(flat: Array, k: int) -> Iterator[tuple[float, float]]:
        p, flat[k] = flat[k], flat[k] + 1j * COMPLEX_STEP
        slope = complex(loss(_like(params, tensors.values()))).imag / COMPLEX_STEP
        flat[k] = p
        yield slope, 0.0

    return _compare(tensors, analytic, slopes, "complex step", 1e-10 if tol is None else tol, samples, rng)


def _takes_complex(
    loss: Callable[[Any], Any], params: Any, tensors: dict[str, Array], value: Callable[[Iterable[Array]], float],
    rng: Generator,
) -> bool:
    """Whether the loss of complex params has the derivative of the loss in its imaginary part, along one direction."""
    directions = [rng.normal(size=p.shape) for p in tensors.values()]
    length = math.sqrt(sum((d * d).sum() for d in directions)) or 1.0
    directions = [d / length for d in directions]

    def moved(s: complex) -> list[Array]:
        return [p + s * d for p, d in zip(tensors.values(), directions, strict=True)]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")      # NumPy only warns where it drops an imaginary part
            loss_of_complex = loss(_like(params, moved(1j * COMPLEX_STEP)))
    except Exception:       # whatever a function says that was written for real numbers
        return False
    if np.shape(loss_of_complex) != () or not np.iscomplexobj(loss_of_complex):
        return False
    slope = complex(loss_of_complex).imag / COMPLEX_STEP
    s = np.zeros(1)
    found = [_difference(lambda: value(moved(s[0])), s, 0, formula) for formula in (CENTRAL, FORWARD, BACKWARD)]
    return any(abs(slope - difference) <= 1e-7 * abs(difference) + rounding for difference, rounding in found)


def _by_differences(
    tensors: dict[str, Array], analytic: dict[str, Array], evaluate: Callable[[], float], tol: float | None,
    samples: int | None, rng: Generator, slack: dict[str, float] | None = None,
) -> GradCheck:
    def slopes(flat: Array, k: int) -> Iterator[tuple[float, float]]:
        for formula in (CENTRAL, FORWARD, BACKWARD):
            yield _difference(evaluate, flat, k, formula)

    return _compare(tensors, analytic, slopes, "central differences", 1e-6 if tol is None else tol, samples, rng, slack)


def _difference(
    evaluate: Callable[[], float], flat: Array, k: int, formula: Sequence[tuple[int, float]]
) -> tuple[float, float]:
    """The derivative of evaluate() by flat[k], which it reads, and how much of it may be rounding."""
    p = float(flat[k])
    h = STEP * max(1.0, abs(p))
    total = rounding = 0.0
    for offset, weight in formula:
        flat[k] = p + offset * h
        loss = evaluate()
        total += weight * loss
        rounding += abs(weight * loss)
    flat[k] = p
    return total / h, 4.0 * EPS * rounding / h


def _compare(
    tensors: dict[str, Array], analytic: dict[str, Array], slopes: Slopes, method: str, tol: float, samples: int | None,
    rng: Generator, slack: dict[str, float] | None = None,
) -> GradCheck:
    """slopes(flat, k) gives numerical derivatives by flat[k] with their rounding, one after the other while asked;
    slack: by tensor, what the analytic ones may have of it."""
    errors: dict[str, float] = {}
    worst: dict[str, tuple[tuple[int, ...], float, float]] = {}
    wrong: list[str] = []
    checked = 0
    for name, tensor in tensors.items():
        if tensor.size == 0:
            continue
        flat, exact, own = tensor.reshape(-1), analytic[name].reshape(-1).tolist(), (slack or {}).get(name, 0.0)
        places = range(flat.size)
        if samples is not None and samples < flat.size:
            places = sorted(rng.choice(flat.size, samples, replace=False).tolist())
        first = [next(slopes(flat, k)) for k in places]
        largest = max((abs(slope) for slope, _ in first if math.isfinite(slope)), default=0.0)
        found = []      # (error beyond rounding, error, place, slope)
        for k, numerical in zip(places, first, strict=True):
            error = _error(exact[k], *numerical, own)
            if error[0] > tol * largest:
                error = min(_error(exact[k], *numerical, own) for numerical in slopes(flat, k))
            found.append((*error[:2], k, error[2]))
        beyond, error, k, slope = max(found)
        errors[name] = error / largest if largest else math.inf if error else 0.0
        worst[name] = tuple(int(i) for i in np.unravel_index(k, tensor.shape)), exact[k], slope
        if beyond > tol * largest:
            wrong.append(name)
        checked += len(found)
    if not errors:
        raise ValueError("params hold no element to check")
    return GradCheck(method, tol, errors, worst, wrong, checked)


def _error(exact: float, slope: float, rounding: float, slack: float) -> tuple[float, float, float]:
    """(distance beyond rounding, distance, slope); what is not a number is infinitely far."""
    error = abs(exact - slope)
    if not math.isfinite(error):
        return math.inf, math.inf, slope
    return max(0.0, error - rounding - slack), error, slope


# The forms in which users hold parameters: one array, or a list, tuple or dict of them.

def _leaves(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(name): leaf for name, leaf in value.items()}
    if isinstance(value, (list, tuple)):
        return {f"params[{i}]": leaf for i, leaf in enumerate(value)}
    return {"params": value}


def _like(form: Any, arrays: Iterable[Array]) -> Any:
    """Copies of arrays in that form."""
    copies = [np.array(a) for a in arrays]
    if isinstance(form, Mapping):
        return dict(zip(form, copies, strict=True))
    if isinstance(form, (list, tuple)):
        return tuple(copies) if isinstance(form, tuple) else copies
    return copies[0]


def _float64(name: str, x: Any) -> Array:
    a = np.asarray(x)
    if a.dtype != np.float64:
        raise TypeError(f"{name} has dtype {a.dtype}; expected float64, or the differences drown in rounding")
    return np.array(a, order="C")


def _number(loss: Any) -> float:
    """A loss as a float."""
    if np.shape(loss) != ():
        raise ValueError(f"loss returned an array of shape {np.shape(loss)}; expected one number")
    return float(loss)
