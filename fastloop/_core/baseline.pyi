# An engine: the kernels and models for one instruction set and precision, the same names in all of them, and the names
# of core.pyi.  `real` is double or float: the arrays of an engine have its precision.

import numpy as np
from numpy.typing import NDArray

from .._types import Ints, Values
from .core import *  # noqa: F403
from .core import ArrayModel, Kernels, LanguageModel, Optimizer

ACTIVATIONS: tuple[str, ...]
LOSSES: tuple[str, ...]
kernels: Kernels

def embedding_forward(
    inputs: Ints,               # const int64_t[::1] (N,)
    positions: Ints,            # const int64_t[::1] (N,)
    wte: Values,                # const real[:, ::1] (V, D)
    wpe: Values,                # const real[:, ::1] (T, D)
    x: Values,                  # real[:, ::1] (N, D)
) -> None: ...
def embedding_backward(
    inputs: Ints,               # const int64_t[::1] (N,)
    positions: Ints,            # const int64_t[::1] (N,)
    dx: Values,                 # const real[:, ::1] (N, D)
    dwte: Values,               # real[:, ::1] (V, D)
    dwpe: Values,               # real[:, ::1] (T, D)
) -> None: ...
def logits_forward(
    x: Values,                  # const real[:, ::1] (N, D)
    lm_head: Values,            # const real[:, ::1] (V, D)
    logits: Values,             # real[:, ::1] (N, V)
) -> None: ...
def logits_backward(
    x: Values,                  # const real[:, ::1] (N, D)
    lm_head: Values,            # const real[:, ::1] (V, D)
    dlogits: Values,            # const real[:, ::1] (N, V)
    dx: Values,                 # real[:, ::1] (N, D)
    dlm_head: Values,           # real[:, ::1] (V, D)
) -> None: ...
def cross_entropy_forward(
    logits: Values,             # const real[:, ::1] (N, V)
    targets: Ints,              # const int64_t[::1] (N,)
    losses: NDArray[np.float64],         # double[::1] (N,)
) -> None: ...
def cross_entropy_backward(
    logits: Values,             # const real[:, ::1] (N, V)
    targets: Ints,              # const int64_t[::1] (N,)
    dlogits: Values,            # real[:, ::1] (N, V)
) -> float: ...
def adam_step(
    grad: Values,               # const real[::1] (n,), yet zeroed if zero_grad
    param: Values,              # real[::1] (n,)
    m: Values,                  # real[::1] (n,)
    v: Values,                  # real[::1] (n,)
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    t: int,
    weight_decay: float,
    decoupled: bool,
    grad_scale: float,
    zero_grad: bool,
) -> None: ...
def grad_norm(
    grad: Values,               # const real[::1] (n,)
) -> float: ...

class EngineKernels(Kernels): ...

class Value:
    def __init__(self, width: int) -> None: ...

class Layer:
    @property
    def x(self) -> Value | None: ...
    @property
    def y(self) -> Value | None: ...

class Embedding(Layer):
    def __init__(self, V: int, D: int, T: int) -> None: ...

class RMSNorm(Layer):
    def __init__(self, x: Value) -> None: ...

class Linear(Layer):
    def __init__(self, x: Value, out: int, names: tuple[str, ...], into: Value | None = None) -> None: ...

class Attention(Layer):
    def __init__(self, x: Value, heads: int, T: int) -> None: ...

class Activation(Layer):
    def __init__(self, x: Value, kind: str) -> None: ...

class Head(Layer):
    def __init__(self, x: Value, V: int, T: int) -> None: ...

# One layer alone, for tests/test_layers.py: rows, given by their addresses.
def one_layer(layer: Layer, N: int, parts: int, given: dict[str, int]) -> None: ...

class Blocks(LanguageModel):
    @staticmethod
    def tensors_of(blocks: list[list[Layer]], head: Head) -> dict[str, tuple[int, ...]]: ...
    def __init__(
        self,
        params: Values,         # const real[::1] (size,)
        grads: Values,          # real[::1], as long
        blocks: list[list[Layer]],
        head: Head,
    ) -> None: ...

class Bigram(Blocks):
    def __init__(
        self,
        params: Values,         # const real[::1] (size,)
        grads: Values,          # real[::1], as long
        V: int,
        D: int,
        T: int,
    ) -> None: ...
    @staticmethod
    def layers(V: int, D: int, T: int) -> tuple[list[list[Layer]], Head]: ...
    @staticmethod
    def tensors(V: int, D: int, T: int) -> dict[str, tuple[int, ...]]: ...

class GPT(Blocks):
    @staticmethod
    def layers(V: int, D: int, T: int, n_layer: int, n_head: int) -> tuple[list[list[Layer]], Head]: ...
    @staticmethod
    def tensors(V: int, D: int, T: int, n_layer: int, n_head: int) -> dict[str, tuple[int, ...]]: ...
    def __init__(
        self,
        params: Values,         # const real[::1] ((2 V + T) D + 12 n_layer D^2,)
        grads: Values,          # real[::1] ((2 V + T) D + 12 n_layer D^2,)
        V: int,
        D: int,
        T: int,
        n_layer: int,
        n_head: int,
    ) -> None: ...

class MLP(ArrayModel):
    @staticmethod
    def tensors(widths: list[int]) -> dict[str, tuple[int, ...]]: ...
    def __init__(
        self,
        params: Values,         # const real[::1] (size,)
        grads: Values,          # real[::1], as long
        widths: list[int],
        activation: int,        # its place in ACTIVATIONS
        loss: int,              # its place in LOSSES
        alpha: float = 0.0,
    ) -> None: ...
    @property
    def depth(self) -> int: ...

class Adam(Optimizer):
    def __init__(
        self,
        params: list[Values],                   # real[::1] (n,)
        states: list[list[Values]],             # [m, v] for each of params
        decays: list[float],
        grads: list[Values] | None,             # real[::1] (n,)
        beta1: float,
        beta2: float,
        eps: float,
        decoupled: bool,
        eps_hat: bool = False,
    ) -> None: ...

class SGD(Optimizer):
    def __init__(
        self,
        params: list[Values],                   # real[::1] (n,)
        states: list[list[Values]],             # [velocity] for each of params, [] without momentum
        decays: list[float],
        grads: list[Values] | None,             # real[::1] (n,)
        momentum: float,
        dampening: float,
        nesterov: bool,
    ) -> None: ...
