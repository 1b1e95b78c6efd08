"""Arrays X and y as the models over arrays read them: copied, then checked; class labels become ids."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from ._check import DTYPES
from ._core import variant
from .data import choose
from .errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ._types import Array, Ints, Values

SHOWN = 10      # labels in a message

# What NumPy calls the kinds of values that no model reads, and what to do about them.
ADVICE = {
    "U": "turn text into numbers first, such as a column of 0 and 1 for each category",
    "M": "turn dates into numbers first, such as days since the first",
    "m": "turn times into numbers first, such as days",
    "c": "take its real part, or both parts as columns",
    "f": "convert it with astype(np.float64)",
}


def pack_arrays(
    X: ArrayLike, y: ArrayLike | None, n_in: int, n_out: int, of_classes: bool, classes: Array | None = None,
    dtype: np.dtype[Any] = DTYPES[0],
) -> tuple[variant.ArrayData, Array | None]:
    """(ArrayData, classes): copies of X and y in the layout that the compiled models read; and the class labels in the
    order of their ids.

    X: (N, n_in), or (N,) where n_in is 1; N at least 1.  y: (N, n_out), or (N,) where n_out is 1; with `of_classes`
    (N,) labels, see `class_ids`; None where only predictions are wanted.  Lists, DataFrames and whatever NumPy makes
    arrays of serve as well; integers, bool and floats become `dtype`.
    Raises TypeError for other kinds; ValueError for shapes and for values that are not finite, or not in that dtype,
    IndexError for class ids out of range, DataError for labels that are no classes, with the place.
    """
    X = _matrix("X", X, n_in, dtype)
    if y is None:
        return variant.ArrayData(X), classes
    if not of_classes:
        return variant.ArrayData(X, _matrix("y", y, n_out, dtype)), None
    ids, classes = class_ids(y, n_out, classes)
    return variant.ArrayData(X, None, ids), classes


def pack_rows(X: Any, y: ArrayLike | None) -> variant.AnyData:
    """Copies of X, an array or a tuple of arrays, and of y, an array or None, for a model of the user's own.

    Their first axis is the rows, of which all have the same number, at least 1; the other axes and the dtypes are free.
    Raises TypeError for what is no array of numbers, text or dates, ValueError where the rows differ, with the names.
    """
    single = not isinstance(X, tuple)
    given = {"X": X} if single else {f"X[{i}]": x for i, x in enumerate(X)}
    if y is not None:
        given["y"] = y
    read = {name: np.array(_read(name, x), order="C") for name, x in given.items()}
    for name, array in read.items():
        if array.dtype.hasobject:
            raise TypeError(f"{name} has dtype {array.dtype}, expected numbers: {_odd(name, array, numbers.Real)}")
        if array.ndim == 0 or len(array) == 0:
            raise ValueError(f"{name} has shape {array.shape}, expected at least one row along the first axis")
    rows = {name: len(array) for name, array in read.items()}
    if not rows or len(set(rows.values())) > 1:
        raise ValueError(f"the arrays must have the same number of rows, got {rows}")
    y = read.pop("y") if y is not None else None
    return variant.AnyData(tuple(read.values()), y, single)


def is_pair(value: object) -> bool:
    """Whether it is X and y in one: a tuple of two, or a list of two arrays (lists could be two rows of X)."""
    if isinstance(value, list):
        return len(value) == 2 and all(getattr(part, "ndim", 0) for part in value)
    return isinstance(value, tuple) and len(value) == 2


def hold_out(X: Any, y: Any, share: float, seed: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Set a random share of the rows aside: (X, y) to train on, (X, y) for validation, each in the order given.

    X: an array or a tuple of arrays; y: an array or None.
    """
    n = len(np.asarray(X[0] if isinstance(X, tuple) else X))
    held = np.zeros(n, bool)
    held[choose(n, share, seed, "rows")] = True
    if not held.any():
        raise ValueError(f"validation = {share} of {n} rows holds none out")

    def rows(which: Array) -> tuple[Any, Any]:
        some = tuple(np.asarray(x)[which] for x in X) if isinstance(X, tuple) else np.asarray(X)[which]
        return some, None if y is None else np.asarray(y)[which]

    return rows(~held), rows(held)


def class_ids(y: ArrayLike, n: int, classes: Array | None = None) -> tuple[Ints, Array]:
    """(ids (N,) int64, classes (n,)): the labels y (N,) as indices into `classes`, the n distinct labels.

    Without classes: integers are ids in [0, n), and two classes of bool are False and True; other labels, str or float,
    are sorted, and y must hold all n.
    """
    y = _labels("y", y)
    if classes is None:
        if y.dtype.kind == "b" and n == 2:
            classes = np.array([False, True])
        elif y.dtype.kind in "iub":
            classes = np.arange(n)
        else:
            classes = np.unique(y)
            if len(classes) != n:
                raise ValueError(
                    f"y holds {len(classes)} distinct labels ({_shown(classes)}), the model has {n} classes: set "
                    "model.classes = [...]"
                )
    if y.dtype.kind in "iub" and np.array_equal(classes, np.arange(n)):
        outside = (y < 0) | (y >= n)
        if outside.any():
            row, labels = outside.argmax(), np.unique(y)
            hint = f"; if these are labels, set model.classes = {labels.tolist()}" if len(labels) == n else ""
            raise IndexError(f"y[{row}] = {y[row]} is outside [0, {n}){hint}")
        return np.require(y, np.int64, ["C", "ALIGNED"]), classes
    order = np.argsort(classes)
    if (y.dtype.kind == "U") == (classes.dtype.kind == "U"):
        ids = order[np.minimum(np.searchsorted(classes, y, sorter=order), n - 1)]
        unknown = classes[ids] != y
    else:
        unknown = np.ones(len(y), bool)
    if unknown.any():
        row = unknown.argmax()
        raise DataError(f"y[{row}] = {y[row].item()!r} is not one of the model's {n} classes: {_shown(classes)}")
    return ids, classes


def as_classes(labels: ArrayLike, n: int) -> Array:
    """The labels of n classes, as the user names them, as an array (n,); raises where they are not n distinct ones."""
    classes = _labels("classes", labels)
    if len(classes) != n or len(np.unique(classes)) != n:
        raise ValueError(f"classes = {_shown(classes)}: the model has {n} classes, and needs as many distinct labels")
    return classes


def _shown(labels: Array) -> str:
    return ", ".join(map(repr, labels[:SHOWN].tolist())) + (", ..." if len(labels) > SHOWN else "")


def _read(name: str, value: Any) -> Array:
    """`value` as an array; TypeError or ValueError for what NumPy cannot read, or would misread."""
    if hasattr(value, "toarray"):
        raise TypeError(f"{name} is a sparse {type(value).__name__}, expected a dense array: {name}.toarray()")
    for part in (value, *value) if isinstance(value, (list, tuple)) else (value,):
        if isinstance(part, np.ma.MaskedArray):
            raise TypeError(
                f"{name} is a masked array, and its mask would be lost: leave out the rows with masked values, or fill "
                f"them in, {name}.filled(0.0)"
            )
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from None
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from None


def _odd(name: str, array: Array, kind: type[object]) -> str | None:
    """Of an array of objects the first that is not of that kind, in words, or None."""
    for place, item in np.ndenumerate(array):
        if not isinstance(item, kind):
            at = f"[{', '.join(map(str, place))}]" if place else ""
            return f"{name}{at} = {item!r:.40} is of type {type(item).__name__}"
    return None


@np.errstate(over="ignore", under="ignore")     # of what is narrowed
def _matrix(name: str, value: ArrayLike, columns: int, dtype: np.dtype[Any]) -> Values:
    array = _read(name, value)
    if array.dtype.kind not in "iub" and (array.dtype.kind != "f" or array.dtype.itemsize > 8):
        if array.dtype.kind == "O":
            advice = _odd(name, array, numbers.Real) or "all are numbers, so convert it with astype(np.float64)"
        else:
            advice = ADVICE.get(array.dtype.kind, "convert it")
        raise TypeError(f"{name} must be float64, or numbers that widen to it, got {array.dtype}: {advice}")
    shape = array.shape
    if array.ndim == 1 and columns == 1:
        array = array.reshape(-1, 1)
    if array.ndim != 2 or array.shape[1] != columns or not len(array):
        raise ValueError(f"{name} has shape {shape}, expected (N, {columns}) with N of at least 1")
    given, array = array, np.array(array, dtype, order="C")     # a copy, so what is checked now is what is read later
    finite = np.isfinite(array)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        place = f"{name}[{row}]" if len(shape) == 1 else f"{name}[{row}, {column}]"
        why = f"is more than a {dtype} can be" if np.isfinite(given[row, column]) else "is not finite"
        raise ValueError(f"{place} = {given[row, column]} {why}")
    return array


def _labels(name: str, value: ArrayLike) -> Array:
    """A copy of labels (N,) as integers, bool, float64 or str."""
    array = np.array(_read(name, value))
    if array.dtype.kind in "OT" or (array.dtype.kind == "U" and not isinstance(value, np.ndarray)):
        # Of a list that holds text NumPy would make all text, numbers too.
        objects = np.array(value, object)
        odd = _odd(name, objects, str)
        if odd and _odd(name, objects, numbers.Real):
            raise TypeError(f"{name} must hold labels of one kind, integers, bool, float or str: {odd}")
        array = np.array(objects.tolist()) if odd else objects.astype(str)
    if array.dtype.kind not in "iubfU" or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
        raise TypeError(f"{name} must hold labels: integers, bool, float or str, got {array.dtype}")
    if array.ndim != 1:
        hint = f", as np.ravel({name}) is" if array.shape[1:] == (1,) else ""
        raise ValueError(f"{name} has shape {array.shape}, expected (N,): one label a row{hint}")
    if array.dtype.kind == "u" and array.max(initial=0) < 2**63:
        array = array.astype(np.int64)      # beside int64, NumPy compares unsigned numbers as float64
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            row = np.isfinite(array).argmin()
            raise ValueError(f"{name}[{row}] = {array[row]} is not finite")
    return array
