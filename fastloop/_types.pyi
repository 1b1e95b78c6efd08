# What the public API takes and gives, in the words of a type checker.  There is no such module at run time: others
# import it under TYPE_CHECKING, so that `import fastloop` costs no more.

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from matplotlib.figure import Figure, SubFigure
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Buffer

from ._core import variant

Array: TypeAlias = NDArray[Any]
Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Values: TypeAlias = NDArray[Any]        # float64 or float32, as the model is, or the arrays of a call
Ints: TypeAlias = NDArray[np.int64]

# Python's numbers and NumPy's, as _check.whole, number and flag take them.
Whole: TypeAlias = int | np.integer[Any]
Number: TypeAlias = float | np.floating[Any] | np.integer[Any]
Flag: TypeAlias = bool | np.bool_

Path: TypeAlias = str | os.PathLike[str]
Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = dict[str, Shape]
Loss: TypeAlias = Literal["mse", "cross_entropy"]
Activation: TypeAlias = Literal["relu", "tanh", "logistic", "identity"]

# The factor on the learning rate at a step, counted from 0.
Schedule: TypeAlias = Callable[[int], float]

# What a History is drawn into.
Drawn = TypeVar("Drawn", Figure, SubFigure)

class _Array(Protocol):
    def __array__(self, *args: Any, **options: Any) -> Array: ...

# The forms in which gradcheck takes parameters: an array, or a list, tuple or dict of them.
Tensors: TypeAlias = Array | list[Array] | tuple[Array, ...] | Mapping[str, Array]

# What NumPy can view without a copy: its own arrays, CPU torch tensors, array.array.
View: TypeAlias = _Array | Buffer

# Documents, or one text; X where y follows; X and y in one; or what Trainer.prepare made of them.
Data: TypeAlias = str | Iterable[str] | ArrayLike | tuple[Any, ...] | variant.Data

class Tokenizer(Protocol):
    """What a language model asks of a tokenizer."""

    @property
    def bos(self) -> int: ...
    @property
    def chars(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str, /) -> list[int]: ...
    def decode(self, ids: Iterable[Any], /) -> str: ...
    def encode_docs(self, docs: Iterable[str], /) -> tuple[NDArray[np.int32], Ints]: ...
    def to_dict(self) -> dict[str, Any]: ...
