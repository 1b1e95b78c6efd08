"""One flat buffer, float64 or float32, with a named view for each tensor.  No model and no arithmetic lives here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ._check import dtype as checked_dtype

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from ._types import Array, Shape, Shapes, Values

ALIGNMENT = 64      # bytes: a cache line, and the widest vector register


def aligned_zeros(n: int, dtype: np.dtype[Any]) -> Values:
    """An array of n zeros whose first byte is aligned to 64."""
    size = n * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype)


class Params(Mapping[str, "Values"]):
    """Tensors by name, all of them views into `flat`.

    shapes: dict of name -> shape, in the order of memory.  dtype: float64 or float32.  `params["wte"][...] = x`,
    `params["wte"] = x` and `params.flat = x` all write into the buffer; the buffer itself never moves.  The last two
    raise TypeError for an array of float64 where the buffer is float32.  A copy, or what pickle brings back, has a
    buffer and views of its own.
    """

    shapes: Shapes

    def __init__(self, shapes: Mapping[str, Shape], dtype: DTypeLike = np.float64) -> None:
        self.shapes = dict(shapes)
        self._flat = aligned_zeros(sum(prod(shape) for shape in self.shapes.values()), checked_dtype(dtype))
        self._views: dict[str, Values] = {}
        start = 0
        for name, shape in self.shapes.items():
            self._views[name] = self.flat[start : start + prod(shape)].reshape(shape)
            start += prod(shape)

    @property
    def flat(self) -> Values:
        """The whole buffer, an array of one axis."""
        return self._flat

    @flat.setter
    def flat(self, value: ArrayLike) -> None:
        value = self._holdable("flat", value)
        if value.shape != self._flat.shape:
            raise ValueError(f"flat has shape {self._flat.shape}, got {value.shape}")
        self._flat[...] = value

    def __reduce__(self) -> tuple[object, ...]:
        # Copied one by one, the views would part from the buffer.
        return _filled, (type(self), self.shapes, self._flat)

    def __getitem__(self, name: str) -> Values:
        try:
            return self._views[name]
        except KeyError:
            raise KeyError(f"{name!r} is not one of {', '.join(self._views)}") from None

    def __setitem__(self, name: str, value: ArrayLike) -> None:
        view, value = self[name], self._holdable(name, value)
        if value.shape != view.shape:
            raise ValueError(f"{name} has shape {view.shape}, got {value.shape}")
        view[...] = value

    def _holdable(self, name: str, value: ArrayLike) -> Array:
        """value as an array; an array of more digits than the buffer holds is refused, numbers of Python's are not."""
        dtype = getattr(value, "dtype", self._flat.dtype)
        if getattr(dtype, "kind", "") == "f" and not np.can_cast(dtype, self._flat.dtype):
            raise TypeError(
                f"{name} has dtype {self._flat.dtype}, got {dtype}: convert it yourself, with astype, to say that "
                "its last digits may go"
            )
        return np.asarray(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"Params({', '.join(f'{name} {shape}' for name, shape in self.shapes.items())})"


def _filled(cls: type[Params], shapes: Shapes, values: Values) -> Params:
    """Params of these shapes with copies of these values."""
    params = cls(shapes, values.dtype)
    params.flat[:] = values
    return params
