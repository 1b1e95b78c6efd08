# An engine: the kernels and models for one instruction set, the same in every variant, and the names of core.pyi.

from .._types import Floats, Ints
from .core import *  # noqa: F403
from .core import ArrayModel, Kernels, LanguageModel, Optimizer

ACTIVATIONS: tuple[str, ...]

def embedding_forward(
    inputs: Ints,               # const int64_t[::1] (N,)
    positions: Ints,            # const int64_t[::1] (N,)
    wte: Floats,                # const double[:, ::1] (V, D)
    wpe: Floats,                # const double[:, ::1] (T, D)
    x: Floats,                  # double[:, ::1] (N, D)
) -> None: ...
def embedding_backward(
    inputs: Ints,               # const int64_t[::1] (N,)
    positions: Ints,            # const int64_t[::1] (N,)
    dx: Floats,                 # const double[:, ::1] (N, D)
    dwte: Floats,               # double[:, ::1] (V, D)
    dwpe: Floats,               # double[:, ::1] (T, D)
) -> None: ...
def logits_forward(
    x: Floats,                  # const double[:, ::1] (N, D)
    lm_head: Floats,            # const double[:, ::1] (V, D)
    logits: Floats,             # double[:, ::1] (N, V)
) -> None: ...
def logits_backward(
    x: Floats,                  # const double[:, ::1] (N, D)
    lm_head: Floats,            # const double[:, ::1] (V, D)
    dlogits: Floats,            # const double[:, ::1] (N, V)
    dx: Floats,                 # double[:, ::1] (N, D)
    dlm_head: Floats,           # double[:, ::1] (V, D)
) -> None: ...
def cross_entropy_forward(
    logits: Floats,             # const double[:, ::1] (N, V)
    targets: Ints,              # const int64_t[::1] (N,)
    losses: Floats,             # double[::1] (N,)
) -> None: ...
def cross_entropy_backward(
    logits: Floats,             # const double[:, ::1] (N, V)
    targets: Ints,              # const int64_t[::1] (N,)
    dlogits: Floats,            # double[:, ::1] (N, V)
) -> float: ...
def adam_step(
    grad: Floats,               # const double[::1] (n,), yet zeroed if zero_grad
    param: Floats,              # double[::1] (n,)
    m: Floats,                  # double[::1] (n,)
    v: Floats,                  # double[::1] (n,)
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
    grad: Floats,               # const double[::1] (n,)
) -> float: ...

class EngineKernels(Kernels): ...

# One layer alone, for tests/test_layers.py: rows (N, D), given by their addresses.
def one_activation(kind: str, N: int, D: int, x: int, y: int, dy: int, dx: int) -> None: ...
def one_rmsnorm(N: int, D: int, x: int, y: int, dy: int, dx: int) -> None: ...
def one_linear(
    N: int, D: int, out: int, pack: bool, W: int, x: int, y: int, dy: int, dx: int, dW: int
) -> None: ...

class EmbeddingAndHead(LanguageModel):
    def __init__(
        self,
        params: Floats,         # const double[::1] (size,)
        grads: Floats,          # double[::1], as long
        V: int,
        D: int,
        T: int,
        tensors: dict[str, tuple[int, ...]],
    ) -> None: ...

class Bigram(EmbeddingAndHead):
    def __init__(
        self,
        params: Floats,         # const double[::1] (size,)
        grads: Floats,          # double[::1], as long
        V: int,
        D: int,
        T: int,
    ) -> None: ...
    @staticmethod
    def tensors(V: int, D: int, T: int) -> dict[str, tuple[int, ...]]: ...

class GPT(EmbeddingAndHead):
    @staticmethod
    def tensors(V: int, D: int, T: int, n_layer: int) -> dict[str, tuple[int, ...]]: ...
    def __init__(
        self,
        params: Floats,         # const double[::1] ((2 V + T) D + 12 n_layer D^2,)
        grads: Floats,          # double[::1] ((2 V + T) D + 12 n_layer D^2,)
        V: int,
        D: int,
        T: int,
        n_layer: int,
        n_head: int,
    ) -> None: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_head(self) -> int: ...

class MLP(ArrayModel):
    @staticmethod
    def tensors(widths: list[int]) -> dict[str, tuple[int, ...]]: ...
    def __init__(
        self,
        params: Floats,         # const double[::1] (size,)
        grads: Floats,          # double[::1], as long
        widths: list[int],
        activation: int,        # its place in ACTIVATIONS
        cross_entropy: bool,
    ) -> None: ...
    @property
    def depth(self) -> int: ...

class Adam(Optimizer):
    def __init__(
        self,
        params: list[Floats],                   # double[::1] (n,)
        states: list[list[Floats]],             # [m, v] for each of params
        decays: list[float],
        grads: list[Floats] | None,             # double[::1] (n,)
        beta1: float,
        beta2: float,
        eps: float,
        decoupled: bool,
    ) -> None: ...

class SGD(Optimizer):
    def __init__(
        self,
        params: list[Floats],                   # double[::1] (n,)
        states: list[list[Floats]],             # [velocity] for each of params, [] without momentum
        decays: list[float],
        grads: list[Floats] | None,             # double[::1] (n,)
        momentum: float,
        dampening: float,
        nesterov: bool,
    ) -> None: ...
