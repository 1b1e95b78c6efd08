"""One flat float64 buffer with a named view for each tensor.  No model and no arithmetic lives here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ._types import Floats, Shape, Shapes

ALIGNMENT = 64      # bytes: a cache line, and the widest vector register


def aligned_zeros(n: int) -> Floats:
    """A float64 array of n zeros whose first byte is aligned to 64."""
    raw = np.zeros(n * 8 + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n * 8].view(np.float64)


class Params(Mapping[str, "Floats"]):
    """Tensors by name, all of them views into `flat`.

    shapes: dict of name -> shape, in the order of memory.  `params["wte"][...] = x`, `params["wte"] = x` and
    `params.flat = x` all write into the buffer; the buffer itself never moves.  A copy, or what pickle brings back, has
    a buffer and views of its own.
    """

    shapes: Shapes

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = dict(shapes)
        self._flat = aligned_zeros(sum(prod(shape) for shape in self.shapes.values()))
        self._views: dict[str, Floats] = {}
        start = 0
        for name, shape in self.shapes.items():
            self._views[name] = self.flat[start : start + prod(shape)].reshape(shape)
            start += prod(shape)

    @property
    def flat(self) -> Floats:
        """The whole buffer, a float64 array."""
        return self._flat

    @flat.setter
    def flat(self, value: ArrayLike) -> None:
        value = np.asarray(value)
        if value.shape != self._flat.shape:
            raise ValueError(f"flat has shape {self._flat.shape}, got {value.shape}")
        self._flat[...] = value

    def __reduce__(self) -> tuple[object, ...]:
        # Copied one by one, the views would part from the buffer.
        return _filled, (type(self), self.shapes, self._flat)

    def __getitem__(self, name: str) -> Floats:
        try:
            return self._views[name]
        except KeyError:
            raise KeyError(f"{name!r} is not one of {', '.join(self._views)}") from None

    def __setitem__(self, name: str, value: ArrayLike) -> None:
        view, value = self[name], np.asarray(value)
        if value.shape != view.shape:
            raise ValueError(f"{name} has shape {view.shape}, got {value.shape}")
        view[...] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"Params({', '.join(f'{name} {shape}' for name, shape in self.shapes.items())})"


def _filled(cls: type[Params], shapes: Shapes, values: Floats) -> Params:
    """Params of these shapes with copies of these values."""
    params = cls(shapes)
    params.flat[:] = values
    return params
