"""One flat float64 buffer with a named view for each tensor.  No model and no arithmetic lives here."""

from collections.abc import Mapping
from math import prod

import numpy as np

ALIGNMENT = 64      # bytes: a cache line, and the widest vector register


def aligned_zeros(n):
    """A float64 array of n zeros whose first byte is aligned to 64."""
    raw = np.zeros(n * 8 + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n * 8].view(np.float64)


class Params(Mapping):
    """Tensors by name, all of them views into `flat`.

    shapes: dict of name -> shape, in the order of memory.  `params["wte"][...] = x`, `params["wte"] = x` and
    `params.flat = x` all write into the buffer; the buffer itself never moves.  A copy, or what pickle brings back, has
    a buffer and views of its own.
    """

    def __init__(self, shapes):
        self.shapes = dict(shapes)
        self._flat = aligned_zeros(sum(prod(shape) for shape in self.shapes.values()))
        self._views, start = {}, 0
        for name, shape in self.shapes.items():
            self._views[name] = self.flat[start : start + prod(shape)].reshape(shape)
            start += prod(shape)

    @property
    def flat(self):
        """The whole buffer, a float64 array."""
        return self._flat

    @flat.setter
    def flat(self, value):
        value = np.asarray(value)
        if value.shape != self._flat.shape:
            raise ValueError(f"flat has shape {self._flat.shape}, got {value.shape}")
        self._flat[...] = value

    def __reduce__(self):
        # Copied one by one, the views would part from the buffer.
        return _filled, (type(self), self.shapes, self._flat)

    def __getitem__(self, name):
        try:
            return self._views[name]
        except KeyError:
            raise KeyError(f"{name!r} is not one of {', '.join(self._views)}") from None

    def __setitem__(self, name, value):
        view, value = self[name], np.asarray(value)
        if value.shape != view.shape:
            raise ValueError(f"{name} has shape {view.shape}, got {value.shape}")
        view[...] = value

    def __iter__(self):
        return iter(self._views)

    def __len__(self):
        return len(self._views)

    def __repr__(self):
        return f"Params({', '.join(f'{name} {shape}' for name, shape in self.shapes.items())})"


def _filled(cls, shapes, values):
    """Params of these shapes with copies of these values."""
    params = cls(shapes)
    params.flat[:] = values
    return params
