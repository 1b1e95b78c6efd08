"""Arrays X and y as the models over arrays read them: copied, then checked."""

import numpy as np

from ._core import variant


def pack_arrays(X, y, n_in, n_out, classes):
    """X and y in the layout that the compiled models read, an ArrayData over copies of them: it never changes.

    X: (N, n_in), or (N,) where n_in is 1; N at least 1.  y: with `classes` (N,) integers in [0, n_out), else
    (N, n_out), or (N,) where n_out is 1; None where only predictions are wanted.
    Raises TypeError for a dtype other than float64, integers or bool; ValueError for shapes and for values that are
    not finite, IndexError for class ids out of range, with the place.
    """
    X = _matrix("X", X, n_in)
    if y is None:
        return variant.ArrayData(X)
    y = _class_ids(y, n_out) if classes else _matrix("y", y, n_out)
    return variant.ArrayData(X, None, y) if classes else variant.ArrayData(X, y)


def _matrix(name, value, columns):
    array = np.asarray(value)
    if array.dtype.kind not in "iub" and (array.dtype.kind, array.dtype.itemsize) != ("f", 8):
        raise TypeError(f"{name} must be float64 (or integers), got {array.dtype}: convert it with astype(np.float64)")
    shape = array.shape
    if array.ndim == 1 and columns == 1:
        array = array.reshape(-1, 1)
    if array.ndim != 2 or array.shape[1] != columns or not len(array):
        raise ValueError(f"{name} has shape {shape}, expected (N, {columns}) with N of at least 1")
    array = np.array(array, np.float64, order="C")      # a copy, so what is checked now is what is read later
    finite = np.isfinite(array)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        place = f"{name}[{row}]" if len(shape) == 1 else f"{name}[{row}, {column}]"
        raise ValueError(f"{place} = {array[row, column]} is not finite")
    return array


def _class_ids(value, n_classes):
    array = np.array(value)
    if array.dtype.kind not in "iub":
        raise TypeError(f"y must hold class ids, which are integers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"y has shape {array.shape}, expected (N,): one class id a row")
    outside = (array < 0) | (array >= n_classes)
    if outside.any():
        row = outside.argmax()
        raise IndexError(f"y[{row}] = {array[row]} is outside [0, {n_classes})")
    return np.require(array, np.int64, ["C", "ALIGNED"])
