# What is compiled once.  Nothing is checked here: wrong sizes or ids are writes into foreign memory.  Trailing
# comments give the C types, real the engine's double or float; sizes as in csrc/engine.pxi.

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from .._types import Array, Ints, Values

openmp: bool    # whether it was compiled with threads

def set_max_threads(n: int) -> None: ...
def set_own_threads(n: int) -> None: ...
def release_threads() -> bool: ...
def set_work_per_thread(n: int) -> int: ...
def carve(counted: list[tuple[int, int]], carved: list[tuple[int, int]]) -> list[int]: ...

class Kernels:
    def embedding_forward(
        self,
        inputs: Ints,               # const int64_t[::1] (N,)
        positions: Ints,            # const int64_t[::1] (N,)
        wte: Values,                # const real[:, ::1] (V, D)
        wpe: Values,                # const real[:, ::1] (T, D)
        x: Values,                  # real[:, ::1] (N, D)
    ) -> None: ...
    def embedding_backward(
        self,
        inputs: Ints,               # const int64_t[::1] (N,)
        positions: Ints,            # const int64_t[::1] (N,)
        dx: Values,                 # const real[:, ::1] (N, D)
        dwte: Values,               # real[:, ::1] (V, D)
        dwpe: Values,               # real[:, ::1] (T, D)
    ) -> None: ...
    def logits_forward(
        self,
        x: Values,                  # const real[:, ::1] (N, D)
        lm_head: Values,            # const real[:, ::1] (V, D)
        logits: Values,             # real[:, ::1] (N, V)
    ) -> None: ...
    def logits_backward(
        self,
        x: Values,                  # const real[:, ::1] (N, D)
        lm_head: Values,            # const real[:, ::1] (V, D)
        dlogits: Values,            # const real[:, ::1] (N, V)
        dx: Values,                 # real[:, ::1] (N, D)
        dlm_head: Values,           # real[:, ::1] (V, D)
    ) -> None: ...
    def cross_entropy_forward(
        self,
        logits: Values,             # const real[:, ::1] (N, V)
        targets: Ints,              # const int64_t[::1] (N,)
        losses: NDArray[np.float64],             # double[::1] (N,)
    ) -> None: ...
    def cross_entropy_backward(
        self,
        logits: Values,             # const real[:, ::1] (N, V)
        targets: Ints,              # const int64_t[::1] (N,)
        dlogits: Values,            # real[:, ::1] (N, V)
    ) -> float: ...
    def adam_step(
        self,
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
        self,
        grad: Values,               # const real[::1] (n,)
    ) -> float: ...

class Buffer: ...

class Floats: ...

class Batch:
    @property
    def n_examples(self) -> int: ...
    @property
    def n_predictions(self) -> int: ...
    def take(
        self,
        indices: Ints,          # const int64_t[::1] (examples,)
        total: float,
    ) -> None: ...

class Data:
    @property
    def n_examples(self) -> int: ...
    @property
    def longest(self) -> int: ...
    @property
    def windows(self) -> bool: ...
    def predictions(
        self,
        indices: Ints,          # const int64_t[::1]
    ) -> int: ...
    def fingerprint(self) -> int: ...
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, memo: object) -> Self: ...

class TokenData(Data):
    def __init__(
        self,
        ids: NDArray[np.int32],         # const int32_t[::1]
        starts: Ints | None,            # const int64_t[::1] (documents + 1,), None for a text in windows
        block_size: int,
    ) -> None: ...
    @property
    def block_size(self) -> int: ...
    @property
    def n_ids(self) -> int: ...
    def in_turn(
        self,
        starts: Ints,           # const int64_t[::1] (documents + 1,)
    ) -> TokenData: ...
    def predictions(
        self,
        indices: Ints,          # const int64_t[::1]
    ) -> int: ...
    def fingerprint(self) -> int: ...

class TokenBatch(Batch):
    def __init__(self, data: TokenData) -> None: ...
    def arrays(self) -> tuple[list[int], list[int], list[int], list[float]]: ...

class ArrayData(Data):
    def __init__(
        self,
        X: Values,              # const real[:, ::1] (N, n_in)
        targets: Values | None = None,          # const real[:, ::1] (N, n_out)
        classes: Ints | None = None,            # const int64_t[::1] (N,)
        weights: NDArray[np.float64] | None = None,     # const double[::1] (N,)
    ) -> None: ...
    @property
    def n_in(self) -> int: ...
    @property
    def n_out(self) -> int: ...
    @property
    def largest_class(self) -> int: ...
    def predictions(
        self,
        indices: Ints,          # const int64_t[::1]
    ) -> int: ...
    def fingerprint(self) -> int: ...

class ArrayBatch(Batch):
    def __init__(self, data: ArrayData) -> None: ...

class AnyData(Data):
    def __init__(
        self,
        X: tuple[Array, ...],   # of one number of rows each
        y: Array | None,
        single: bool,
    ) -> None: ...
    @property
    def X(self) -> tuple[Array, ...]: ...
    @property
    def y(self) -> Array | None: ...
    @property
    def single(self) -> bool: ...
    def predictions(
        self,
        indices: Ints,          # const int64_t[::1]
    ) -> int: ...
    def fingerprint(self) -> int: ...

class AnyBatch(Batch):
    def __init__(self, data: AnyData) -> None: ...

class Gate:
    @property
    def run(self) -> tuple[str, int] | None: ...
    def close(self, what: str) -> bool: ...
    def open(self) -> None: ...
    def check(self, what: str) -> None: ...
    def check_whole(self, what: str) -> None: ...

class Alone:
    def __init__(self, gate: Gate, what: str) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *exception: object) -> None: ...

class Model:
    def __init__(
        self,
        kernels: Kernels,
        params: Values,         # const real[::1] (size,)
        grads: Values,          # real[::1] (size,)
    ) -> None: ...
    @property
    def size(self) -> int: ...

class Tensors:
    def __init__(
        self,
        of_float32: Kernels,
        of_float64: Kernels,
        adam: bool,
        slots: tuple[str, ...],
        check: Callable[[Any, dict[str, Any], tuple[str, ...]], None],
        check_apart: Callable[[list[Any]], None],
        like: Callable[[Any, Any], Any],
    ) -> None: ...
    @property
    def params(self) -> list[Any]: ...
    def step(
        self,
        groups: list[dict[str, Any]],
        state: Any,
        hyper: list[tuple[float, float, float, float, float, bool, float]],
        look: bool,
    ) -> Any | None: ...

class OwnModel(Model):
    def __init__(
        self,
        kernels: Kernels,
        params: Values,         # const real[::1] (size,)
        grads: Values,          # real[::1] (size,)
        forward: Callable[[Any, Any, NDArray[np.float64]], Any],
        backward: Callable[[], object],
        gate: Gate,
    ) -> None: ...

class LanguageModel(Model):
    @property
    def V(self) -> int: ...
    @property
    def D(self) -> int: ...
    @property
    def T(self) -> int: ...
    def logits_of(
        self,
        batch: Batch,
        logits: Values,         # real[:, ::1] (N, V)
    ) -> None: ...
    def generate_step(
        self,
        tokens: Ints,           # const int64_t[::1] (B,), B <= 8
        position: int,
        logits: Values,         # real[:, ::1] (B, V)
    ) -> None: ...

class ArrayModel(Model):
    def predict(
        self,
        batch: ArrayBatch,
        out: Values,            # real[:, ::1] (N, n_out)
    ) -> None: ...

class Optimizer:
    t: int
    def __init__(
        self,
        kernels: Kernels,
        params: list[Values],                   # n values each, of one dtype
        states: list[list[Values]],             # real[::1] (n,), for each of params
        decays: list[float],
        grads: list[Values] | None = None,      # real[::1] (n,)
    ) -> None: ...
    def step_with(self, grads: list[Any], lr: float, look: bool) -> tuple[int, float | None] | None: ...
    def step(self, lr: float) -> bool: ...

class Loop:
    steps: int
    def __init__(self, model: Model, optimizer: Optimizer | None, gate: Gate | None = None) -> None: ...
    @property
    def model(self) -> Model: ...
    @property
    def optimizer(self) -> Optimizer: ...
    @property
    def loss(self) -> float: ...
    @property
    def norm(self) -> float: ...
    def zero_grad(self) -> None: ...
    def clear(self) -> None: ...
    def forward(self, given: Batch) -> float: ...
    def backward(self) -> None: ...
    def grad_norm(self) -> float: ...
    def scale_grads(self, scale: float) -> None: ...
    def clip_value(self, limit: float) -> int: ...
    def step(self, lr: float, norm: float = -1.0) -> float | None: ...
    def total_loss(self) -> float: ...
    def run(
        self,
        batch: Batch,
        indices: Ints,          # const int64_t[::1]
        splits: Ints,           # const int64_t[::1] (steps accumulate + 1,)
        accumulate: int,
        lrs: NDArray[np.float64],            # const double[::1] (steps,)
        clip_norm: float,
        losses: NDArray[np.float64],         # double[::1] (steps,)
        norms: NDArray[np.float64],          # double[::1] (steps,)
        clip_value: float = ...,
        clipped: NDArray[np.uint8] | None = None,       # unsigned char[::1] (steps,)
    ) -> int: ...
