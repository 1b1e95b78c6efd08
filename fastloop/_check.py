"""Checks of users' arrays and numbers, made before compiled code sees them.  Messages only; no policy.

The compiled loops check nothing: with a wrong length or id they would write outside an array.  Every error shows what
was given beside what is needed.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from ._types import Array

Function = TypeVar("Function", bound=Callable[..., Any])

BOOLS = (bool, np.bool_)
MOST_SEED = 2**128      # what NumPy recommends at most
DTYPES = np.dtype(np.float64), np.dtype(np.float32)     # of models, and of the arrays of one call


def array(
    name: str, x: Any, shape: tuple[int | None, ...] | None = None, dtype: DTypeLike | None = None,
    writeable: bool = False,
) -> Array:
    """Return x as a NumPy array over the same memory, as the compiled loops need it; never a copy.

    x : NumPy array, or anything that NumPy can view (a CPU torch tensor, an array.array).
    shape : sizes, None where any size will do; no axis but the first may be empty.  Any shape if omitted.
    dtype : what it must have; None for float64 or float32.

    Raises TypeError for something else than an array and for another dtype or byte order; ValueError for another
    shape, and for memory that is not C-contiguous, not aligned or (where needed) not writeable.
    """
    a = x
    if not isinstance(x, np.ndarray):
        try:
            a, again = np.asarray(x), np.asarray(x)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} cannot be viewed as an array: {error}") from error
        # Two views have one address; two copies, both alive, have not.
        if _address(a) != _address(again):
            raise TypeError(f"{name} is a {type(x).__name__}; expected an array that NumPy can view without a copy")
    if a.dtype not in DTYPES if dtype is None else a.dtype != dtype:
        expected = "float64 or float32" if dtype is None else np.dtype(dtype)
        raise TypeError(f"{name} has dtype {a.dtype}; expected {expected} (fastloop never makes a silent copy)")
    if shape is not None and not _fits(a.shape, shape):
        needed = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} has shape {a.shape}; expected ({needed}{',' if len(shape) == 1 else ''})")
    if 0 in a.shape[1:]:
        raise ValueError(f"{name} has shape {a.shape}; only the first axis may be empty")
    if not a.flags.c_contiguous:
        raise ValueError(f"{name} has strides {a.strides}; expected C-contiguous memory of shape {a.shape}")
    if not a.flags.aligned:
        raise ValueError(f"{name} begins at address {_address(a):#x}; expected a multiple of {a.itemsize}")
    if writeable and not a.flags.writeable:
        raise ValueError(f"{name} is read-only; it is an output and must be writeable")
    return a


def _address(a: Array) -> int:
    return a.__array_interface__["data"][0]


def _fits(shape: tuple[int, ...], needed: tuple[int | None, ...]) -> bool:
    # A list: where a generator runs out of memory, CPython 3.13.0 crashes.
    return len(shape) == len(needed) and all([m in (None, n) for n, m in zip(shape, needed, strict=True)])


def ids(name: str, x: Array, limit: int) -> None:
    """Raise IndexError unless every id of x (n,) lies in [0, limit)."""
    if x.size and (x.min() < 0 or x.max() >= limit):
        i = np.flatnonzero((x < 0) | (x >= limit))[0]
        raise IndexError(f"{name}[{i}] = {x[i]} is outside [0, {limit})")


def separate(outputs: Mapping[str, Array], inputs: Mapping[str, Array]) -> None:
    """Raise ValueError if an output shares memory with another output or an input; both are {name: array}."""
    for (a, x), (b, y) in [*combinations(outputs.items(), 2), *product(outputs.items(), inputs.items())]:
        if np.may_share_memory(x, y):       # compares bounds, which is exact for contiguous arrays
            raise ValueError(f"{a} and {b} overlap in memory; an output needs memory of its own")


def number(name: str, x: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> float:
    """x as a plain float in [low, high), or in (low, high) if `above`; NaN and True are refused."""
    if isinstance(x, BOOLS) or not isinstance(x, numbers.Real):
        raise TypeError(f"{name} = {x!r} is a {type(x).__name__}; expected a number (real)")
    try:
        plain = float(x)
    except OverflowError:       # an int that no float can hold
        plain = -math.inf if x < 0 else math.inf
    if not (low < plain if above else low <= plain) or not plain < high:
        raise ValueError(f"{name} = {x} is outside {'(' if above else '['}{low}, {high})")
    return plain


def whole(name: str, x: Any, low: int = 1, high: int = 2**63) -> int:
    """x, an int or what stands for one (NumPy's), as a plain int in [low, high)."""
    try:
        if isinstance(x, BOOLS):
            raise TypeError
        plain = operator.index(x)
    except TypeError:
        raise TypeError(f"{name} = {x!r} must be an int of at least {low}") from None
    if not low <= plain < high:
        raise ValueError(f"{name} = {plain} must be an int of at least {low}" + f" and below {high}" * (plain >= high))
    return plain


def flag(name: str, x: Any) -> bool:
    """x as a plain bool: True or False, also NumPy's."""
    if not isinstance(x, BOOLS):
        raise TypeError(f"{name} = {x!r} must be True or False")
    return bool(x)


def choice(name: str, x: Any, *choices: str) -> Any:
    """x, one of a few words, as a plain str."""
    if not isinstance(x, str) or x not in choices:
        raise ValueError(f"{name} = {x!r} is not one of {', '.join(map(repr, choices))}")
    return str(x)


def dtype(x: Any) -> np.dtype[Any]:
    """x, anything that NumPy makes a dtype of, as the dtype float64 or float32."""
    try:
        plain = np.dtype(x)
    except TypeError:
        raise TypeError(f"dtype = {x!r} is no dtype of NumPy; expected 'float64' or 'float32'") from None
    if plain not in DTYPES:
        raise TypeError(f"dtype = {x!r}: values are float64 or float32, {plain} is not offered")
    return plain


@np.errstate(over="ignore", under="ignore")
def rounded(x: float, dtype: np.dtype[Any]) -> float:
    """The number of that dtype that is nearest to x: 0 or infinite where it holds none so small or large."""
    return float(dtype.type(x))


def seed(x: Any) -> int | None:
    """x as the plain int that starts a random stream, or None, which starts a new one each time."""
    return None if x is None else whole("seed", x, 0, MOST_SEED)


# What other programs, courses and papers call the arguments here.
ELSEWHERE = {
    "learning_rate": "lr", "initial_learning_rate": "lr", "step_size": "lr", "min_lr": "lr_end",
    "iterations": "steps", "iters": "steps", "max_iters": "steps", "max_steps": "steps", "num_steps": "steps",
    "n_steps": "steps", "train_steps": "steps", "training_steps": "steps", "num_epochs": "epochs", "n_epochs": "epochs",
    "input": "data", "file": "data", "output": "save", "checkpoint": "save",
    "context_length": "block_size", "context_size": "block_size", "context_window": "block_size",
    "sequence_length": "block_size", "seq_len": "block_size", "max_seq_len": "block_size",
    "hidden_size": "n_embd", "d_model": "n_embd", "embedding_dim": "n_embd", "embedding_size": "n_embd",
    "embed_dim": "n_embd", "layers": "n_layer", "num_layers": "n_layer", "heads": "n_head", "num_heads": "n_head",
    "val_split": "val_fraction", "validation_split": "val_fraction", "test_size": "val_fraction",
    "val_data": "validation", "eval_interval": "eval_every", "log_interval": "log_every",
    "save_interval": "save_every", "early_stopping": "patience", "n_iter_no_change": "patience",
    "max_norm": "clip_norm", "max_grad_norm": "clip_norm", "grad_clip": "clip_norm", "gradient_clipping": "clip_norm",
    "gradient_accumulation_steps": "grad_accum", "accumulation_steps": "grad_accum", "lr_scheduler": "schedule",
    "warmup_steps": "warmup", "warmup_iters": "warmup", "lr_decay_iters": "decay_steps",
    "momentum_smoothing": "beta1", "gradient_smoothing": "beta1", "first_moment_decay": "beta1", "adam_beta1": "beta1",
    "squared_gradient_smoothing": "beta2", "second_moment_decay": "beta2", "adam_beta2": "beta2",
    "epsilon": "eps", "adam_epsilon": "eps", "l2_penalty": "weight_decay", "random_state": "seed",
    "random_seed": "seed", "std": "init_std", "num_samples": "sample", "n_samples": "sample",
    "max_new_tokens": "length",
}


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of names that is most like `name`, or like what other programs call it; None where none is."""
    import difflib

    others = {other: own for other, own in ELSEWHERE.items() if own in names}
    near = difflib.get_close_matches(name, [*names, *others], n=1)
    return others.get(near[0], near[0]) if near else None


def names_nearest(function: Function) -> Function:
    """A decorator: a keyword that the function does not take is refused with the name of the nearest that it takes."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

    @wraps(function)
    def checked(*arguments: Any, **keywords: Any) -> Any:
        for name in keywords:
            if name not in names:
                near = nearest(name, names)
                if near is None and nearest(name, ["lr"]):
                    hint = "the optimizer has the learning rate: Adam(lr=0.01)"
                else:
                    hint = f"did you mean {near}?" if near else f"it takes {', '.join(names).removeprefix('self, ')}"
                called = function.__qualname__.removesuffix(".__init__")
                raise TypeError(f"{called} takes no argument {name}; {hint}")
        return function(*arguments, **keywords)

    return cast(Function, checked)
