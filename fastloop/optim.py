"""Optimisers: they own their moments and the step count, and update in place with one compiled pass.

The same object serves a model under a Trainer (`fl.Adam(lr=0.01)`) or the user's own arrays, float64 or float32
(`fl.Adam(params=[w, b])`, then `opt.step([gw, gb])`).  Argument names, defaults and state_dict() are torch.optim's.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from . import _core
from ._check import array, flag, names_nearest, number, rounded, whole
from .errors import DivergenceError
from .params import Params

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._types import Array, Flag, Number, Shape, Values, View
    from .models import Model

MAX_STEPS = 2**53       # a float64 counts no further


class Optimizer:
    """What Adam, AdamW and SGD share.

    params: list of arrays to update in place, all float64 or all float32 (NumPy's, or what NumPy views without a copy,
    such as CPU torch tensors and Parameters), or None: then a Trainer binds the optimiser to its model.  The moments
    have their dtype.
    no_decay: what has no weight decay: names of a model's tensors (a last part such as "bias" stands for all that end
    in it), or indices into params.

    lr may be set at any time; every other hyperparameter is fixed when the optimiser is made.

    A copied or unpickled optimiser has moments of its own.  Copied with its Trainer, it serves that copy; copied alone,
    it is unbound, and goes on from its moments with the next model of those shapes that a Trainer binds it to.  Copied
    with its arrays, as by deepcopy((arrays, opt)), it serves the copies of the arrays.
    """

    # Names of the hyperparameters beside lr and weight_decay, as attributes and in state_dict()
    hyper: ClassVar[tuple[str, ...]] = ()
    slots: tuple[str, ...] = ()         # torch.optim's names of the state arrays
    decoupled: ClassVar[bool] = False   # whether weight decay leaves the gradient alone, as AdamW's does

    weight_decay: float
    no_decay: tuple[str | int, ...]
    model: Model | None             # that a Trainer bound
    flats: dict[str, Params]        # slot -> Params in the model's shapes

    def __init__(
        self, params: Iterable[View] | None, lr: Number, weight_decay: Number, no_decay: Iterable[str | int] = ()
    ) -> None:
        self.lr = lr
        if isinstance(no_decay, (str, bytes, dict)):
            kind = type(no_decay).__name__
            raise TypeError(f"no_decay = {no_decay!r} is a {kind}; expected a list of names, or of indices into params")
        self.weight_decay = number("weight_decay", weight_decay, 0.0)
        self.no_decay = tuple(no_decay)
        self._core: Any = None  # the compiled optimiser, once there is something to update
        self._t = 0             # steps taken, while there is no _core
        self._given: list[Any] | None = None    # params, as the user's own objects
        self.model = None
        self.flats = {}
        self._params: list[Values] | None = None
        self._tensors: list[Any] = []           # those of params that are torch's and have a version counter
        self._state: list[dict[str, Values]] = []       # of each tensor: slot -> array
        self._decays: list[float] = []                  # of each tensor
        if params is not None:
            self._take(params)

    def __setattr__(self, name: str, value: object) -> None:
        # The compiled optimiser has copies of these, which would not change.
        if name in (*self.hyper, "weight_decay", "no_decay") and name in self.__dict__:
            raise AttributeError(f"{name} is fixed when an optimiser is made; make a new one (only lr may change)")
        super().__setattr__(name, value)

    @property
    def lr(self) -> float:
        """The learning rate, before any schedule's factor."""
        return self._lr

    @lr.setter
    def lr(self, value: Number) -> None:
        self._lr = number("lr", value, 0.0)

    @property
    def t(self) -> int:
        """Steps taken, at most 2**53."""
        return self._t if self._core is None else self._core.t

    @t.setter
    def t(self, value: Number) -> None:
        if self._core is None:
            self._t = _steps("t", value)
        else:
            self._core.t = _steps("t", value)

    def __getstate__(self) -> dict[str, Any]:
        gate = getattr(self.model, "gate", None)
        if gate is not None:
            gate.check_whole("copying or pickling an optimiser")
        state = {**vars(self), "_core": None, "_t": self.t, "model": None, "_params": None}
        if self.model is not None:
            state["_state"] = []        # views into flats
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._given is not None:
            self._take(self._given, self._state)
        else:
            self._state = self._views() or [{} for _ in self._decays]

    def __copy__(self) -> Self:
        return copy.deepcopy(self)      # a shallow copy would share the moments and not the step count

    def _views(self) -> list[dict[str, Values]]:
        """The moments of each tensor, in `flats`."""
        names = next(iter(self.flats.values()), ())
        return [{slot: params[name] for slot, params in self.flats.items()} for name in names]

    def _take(self, params: Iterable[View], state: list[dict[str, Values]] | None = None) -> None:
        """Take these arrays as params, with new moments or those of `state`."""
        if hasattr(params, "__array__") or not hasattr(params, "__iter__"):
            hint = " (for a learning rate pass lr=...)" if isinstance(params, float) else ""
            raise TypeError(f"params is one {type(params).__name__}; expected a list of arrays, such as [w, b]{hint}")
        self._given = list(params)
        tensor = getattr(sys.modules.get("torch"), "Tensor", ())
        # An inference tensor has no version counter.
        self._tensors = [p for p in self._given if isinstance(p, tensor) and not p.is_inference()]
        self._params = [_tensor(f"params[{i}]", p, None, None, True) for i, p in enumerate(self._given)]
        if not self._params:
            raise ValueError("params is empty")
        dtype = self._params[0].dtype
        for i, p in enumerate(self._params):
            if p.dtype != dtype:
                raise TypeError(f"params[{i}] has dtype {p.dtype}; expected {dtype}, which params[0] has")
        self._check_dtype(dtype)
        # Sorted by address, an array can overlap none but its neighbours.
        ranges = sorted((*_range(p), i) for i, p in enumerate(self._params) if p.size)
        for (_, end, i), (start, _, j) in pairwise(ranges):
            if start < end:
                raise ValueError(f"params[{min(i, j)}] and params[{max(i, j)}] overlap in memory")
        places = range(len(self._params))
        for i in self.no_decay:
            if i not in places:
                raise ValueError(f"no_decay = {i!r} is not an index into a list of {len(places)} arrays")
        self._state = state or [{slot: np.zeros(p.shape, dtype) for slot in self.slots} for p in self._params]
        self._decays = [0.0 if i in self.no_decay else self.weight_decay for i in places]
        states = [[array.reshape(-1) for array in slots.values()] for slots in self._state]
        self._core = self._make_core(self._params, states, self._decays, None)
        self._core.t = self._t

    def bind(self, model: Model) -> _core.variant.Optimizer:
        """Take over a model's buffers; the Trainer calls this.  Binding to the same model again changes nothing."""
        if self._params is not None:
            raise ValueError("this optimiser was made for arrays (params=...) and cannot serve a Trainer as well")
        if self.model is model:
            return self._core
        if self.model is not None:
            raise ValueError("this optimiser already serves another model; make one for each")
        names, shapes, dtype = list(model.params), model.params.shapes, model.params.flat.dtype
        for slot, params in self.flats.items():
            if params.shapes != shapes:
                held = f"this optimiser holds {slot} of {params!r}"
                raise ValueError(f"{held}, the model is {model.params!r}; make a new one")
            if params.flat.dtype != dtype:
                held = f"this optimiser holds {slot} of {params.flat.dtype}"
                raise TypeError(f"{held}, the model is {dtype}; make a new one")
        self._check_dtype(dtype)
        for n in self.no_decay:
            if not any(_means(n, name) for name in names):
                raise ValueError(f"no_decay = {n!r} is not one of {', '.join(names)}")
        self._decays = [0.0 if any(_means(n, name) for n in self.no_decay) else self.weight_decay for name in names]
        self.flats = self.flats or {slot: Params(shapes, dtype) for slot in self.slots}
        self._state = self._views() or [{} for _ in names]
        decays: list[float] = []
        edges = [0]                     # adjacent tensors of equal decay are updated as one array
        for name, decay in zip(names, self._decays, strict=True):
            if not decays or decays[-1] != decay:
                edges.append(edges[-1])
                decays.append(decay)
            edges[-1] += model.params[name].size
        pieces = [slice(*edge) for edge in pairwise(edges)]
        states = [[self.flats[slot].flat[piece] for slot in self.slots] for piece in pieces]
        params, grads = ([flat[piece] for piece in pieces] for flat in (model.params.flat, model.grads.flat))
        self._core = self._make_core(params, states, decays, grads)
        self._core.t = self._t
        self.model = model
        return self._core

    def step(self, grads: Iterable[View], check_finite: bool = True) -> None:
        """One update of the arrays given as params, in place.

        grads: a list of arrays of the same shapes and dtype, in the same order; they are read, not changed, and may be
        read-only.  check_finite: False skips the check that the gradients are finite, for callers that have just
        computed their norm.
        torch tensors among params count the step as a change in place, so that backward through an old graph raises.

        Raises before anything is written: TypeError or ValueError for grads that do not fit, DivergenceError where the
        norm of one or its square is not finite (torch.optim would carry a NaN into the parameters), or with this lr a
        parameter or moment would not be finite after the step.
        """
        if self._params is None:
            raise TypeError("step(grads) is for an optimiser made with params; under a Trainer call trainer.step()")
        grads = list(grads)
        if len(grads) != len(self._params):
            raise ValueError(f"{len(grads)} gradients for {len(self._params)} params")
        refused = self._core.step_with(grads, self._lr, check_finite)
        if refused is None:
            if self._tensors:
                _count_changes(self._tensors)
            return
        i, norm = refused
        if norm is None:        # not a plain array of that dtype: what NumPy can view without a copy will do
            pairs = zip(grads, self._params, strict=True)
            self.step([_tensor(f"grads[{i}]", g, p.shape, p.dtype) for i, (g, p) in enumerate(pairs)], check_finite)
            return
        what = f"the norm of grads[{i}] is {norm:.3g}"
        if i < 0:
            what = "a parameter or moment would not be finite after the step"
        raise DivergenceError(
            f"step {self.t + 1}: {what} (lr {self.lr:.3g}); parameters and moments are "
            "as they were before this step. Try a smaller lr, or look for extreme values in the data",
            self.t, None, norm, self.lr,
        )

    def _make_core(
        self, params: list[Values], states: list[list[Values]], decays: list[float], grads: list[Values] | None
    ) -> _core.variant.Optimizer:
        """The compiled optimiser over lists of arrays; states and grads are flat."""
        raise NotImplementedError

    def _check_dtype(self, dtype: np.dtype[Any]) -> None:
        """Refuse hyperparameters that would be other numbers in that dtype."""
        for name in ("weight_decay", "momentum", "dampening"):
            value = getattr(self, name, 0.0)
            if rounded(value, dtype) == inf:
                raise ValueError(f"{name} = {value} is infinite in {dtype}, expected a number there")

    def state_dict(self) -> dict[str, Any]:
        """Copies of the state in torch.optim's layout: {"state": {i: {...}}, "param_groups": [{...}]}.

        Tensor i is the i-th of params, or of the bound model's tensors in their order; before the first step there is
        no state.  Tensors of equal weight decay form one group, so no_decay gives two.  lr is without the schedule.
        """
        copies = [{slot: a.copy() for slot, a in slots.items()} for slots in self._state] if self.t else []
        shared = {"lr": self.lr, **{name: getattr(self, name) for name in self.hyper}, **self._fixed()}
        groups = []
        for decay in sorted(set(self._decays), reverse=True) or [self.weight_decay]:
            places = [i for i, own in enumerate(self._decays) if own == decay]
            groups.append({**shared, "weight_decay": decay, "params": places})
        return {"state": {i: {"step": self.t, **slots} for i, slots in enumerate(copies)}, "param_groups": groups}

    def _fixed(self) -> dict[str, bool]:
        """Options of torch.optim that are fixed here, under torch's names."""
        return {"amsgrad": False, "maximize": False, "decoupled_weight_decay": self.decoupled}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state_dict() of the same kind, torch.optim's included, over tensors of the same shapes.

        lr is taken over too; the other hyperparameters must be those of this optimiser.  torch's SGD keeps no step
        count: t is then 1.  Raises KeyError, TypeError or ValueError before any change: for another optimiser's state,
        moments of float64 for parameters of float32 (the reverse is exact, and taken), moments that are not finite, a
        negative exp_avg_sq, a step that is no whole number in [0, 2**53].
        """
        gate = getattr(self.model, "gate", None)
        if gate is not None:
            gate.check("load_state_dict()")
        if not self._state:
            raise ValueError("bind the optimiser to a model first (fl.Trainer(model, opt)), then load its state")
        groups, n = state_dict["param_groups"], len(self._state)
        places = [i for group in groups for i in group["params"]]
        if sorted(places) != list(range(n)):
            raise ValueError(f"the groups hold tensors {places}, this optimiser 0 to {n - 1}")
        state = {int(i): entry for i, entry in state_dict["state"].items()}
        if state and sorted(state) != list(range(n)):
            raise ValueError(f"the state holds tensors {sorted(state)}, this optimiser 0 to {n - 1}")
        for i, entry in state.items():
            found = {slot for slot, value in entry.items() if value is not None} - {"step"}     # None: torch 2.0's SGD
            if found != set(self.slots):
                kept, found = (", ".join(sorted(slots)) or "nothing" for slots in (self.slots, found))
                raise ValueError(f"the state of tensor {i} is {found}, that of {type(self).__name__} {kept}")
        for group in groups:
            expected = {"lr": groups[0].get("lr"), **{name: getattr(self, name) for name in self.hyper}}
            expected |= {name: value for name, value in self._fixed().items() if name in group}
            for name, value in expected.items():
                if name not in group:
                    raise ValueError(f"the state has no {name}, which {type(self).__name__} has")
                new = tuple(group[name]) if isinstance(group[name], list) else group[name]
                if new != value:
                    raise ValueError(f"{name} = {new} in the state, {value} in this optimiser")
            decay = group["weight_decay"]
            for i in group["params"]:
                if decay != self._decays[i]:
                    raise ValueError(f"tensor {i} has weight_decay {decay} in the state, {self._decays[i]} here")
        steps = {_steps(f"step of tensor {i}", entry.get("step", 1)) for i, entry in state.items()}
        if len(steps) > 1:
            raise ValueError(f"the tensors must be at one step, at least 0; they are at {sorted(steps)}")
        new = [
            {slot: _loaded(i, slot, state[i][slot], a) if state else 0.0 for slot, a in slots.items()}
            for i, slots in enumerate(self._state)
        ]
        self.lr = float(groups[0]["lr"])    # the last line that can fail
        self.t = max(steps, default=0)
        for slots, values in zip(self._state, new, strict=True):
            for slot, a in slots.items():
                a[...] = values[slot]

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make an optimiser like this one."""
        hyper = {name: getattr(self, name) for name in self.hyper}
        return {"lr": self.lr, **hyper, "weight_decay": self.weight_decay, "no_decay": self.no_decay}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self.config.items())})"


def _tensor(
    name: str, x: Any, shape: Shape | None, dtype: np.dtype[Any] | None, writeable: bool = False
) -> Values:
    """_check.array, for torch's tensors too: one that requires a gradient can be viewed only if detached."""
    return array(name, x.detach() if hasattr(x, "detach") else x, shape, dtype, writeable)


def _range(a: Array) -> tuple[int, int]:
    """First address of a contiguous array, and the first behind it."""
    start = a.__array_interface__["data"][0]
    return start, start + a.nbytes


def _means(name: str | int, tensor: str) -> bool:
    """Whether an entry of no_decay stands for that tensor."""
    return tensor == name or tensor.endswith(f".{name}")


def _steps(name: str, value: Any) -> int:
    """A number of steps, as an int: torch counts in tensors of float32."""
    if getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return whole(name, value, 0, MAX_STEPS + 1)


def _count_changes(tensors: Iterable[Any]) -> None:
    """Increment the version counters of torch's tensors, by which its graphs notice a write."""
    increment = getattr(sys.modules["torch"].autograd.graph, "increment_version", None)
    for tensor in tensors:
        if increment:
            increment(tensor)
        else:       # before torch 2.1: an empty write
            tensor.detach().reshape(-1)[:0].zero_()


def _loaded(i: int, slot: str, value: Any, like: Array) -> Array:
    """A state array to load, checked against the one that it replaces."""
    a = np.asarray(value)
    if a.shape != like.shape:
        raise ValueError(f"{slot} of tensor {i} has shape {a.shape}, expected {like.shape}")
    if not np.can_cast(a.dtype, like.dtype):
        raise TypeError(f"{slot} of tensor {i} has dtype {a.dtype}, which {like.dtype} cannot hold")
    if not np.isfinite(a).all():
        raise ValueError(f"{slot} of tensor {i} is not finite")
    if slot == "exp_avg_sq" and a.size and a.min() < 0.0:
        raise ValueError(f"exp_avg_sq of tensor {i} is {a.min()} at least once, expected a mean of squares")
    return a


class Adam(Optimizer):
    """Adam with bias correction (Kingma and Ba 2015, algorithm 1) in one pass over memory.

        g = g + weight_decay p
        m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2
        p = p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    params, no_decay: see Optimizer.  lr: step size, at least 0; a Trainer multiplies it by its schedule.
    betas: each in [0, 1).  eps: greater than 0.  weight_decay: at least 0.

    Differs from the paper: at every 16th step (at each where a beta is below 0.1) a moment whose magnitude is below
    1e-290 is set to 0, since arithmetic on the subnormal numbers that would follow slows every later step.  With an eps
    below 1e-125 such a moment could still change a parameter, so then only one below (1e-20 eps)^2 is.  In float32 the
    limits are 1e-35, each step where a beta is below 0.7, and (1e-9 eps)^2 where eps is below 3e-9; what would add less
    than that to exp_avg_sq counts as 0; and an eps that is 0 or infinite there, or a beta that is 1, is refused.
    """

    hyper: ClassVar[tuple[str, ...]] = ("betas", "eps")
    slots: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    betas: tuple[float, float]
    eps: float

    @names_nearest
    def __init__(
        self, params: Iterable[View] | None = None, lr: Number = 1e-3, betas: Sequence[Number] = (0.9, 0.999),
        eps: Number = 1e-8, weight_decay: Number = 0.0, *, no_decay: Iterable[str | int] = (),
    ) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas = {betas!r}; expected a pair of numbers")
        self.betas = number("betas[0]", betas[0], 0.0, 1.0), number("betas[1]", betas[1], 0.0, 1.0)
        self.eps = number("eps", eps, 0.0, above=True)     # with 0, a gradient that stays 0 would give 0 / 0
        super().__init__(params, lr, weight_decay, no_decay)

    def _make_core(
        self, params: list[Values], states: list[list[Values]], decays: list[float], grads: list[Values] | None
    ) -> _core.variant.Adam:
        return _core.engine(params[0].dtype).Adam(
            params, states, decays, grads, *self.betas, self.eps, self.decoupled
        )

    def _check_dtype(self, dtype: np.dtype[Any]) -> None:
        super()._check_dtype(dtype)
        eps = rounded(self.eps, dtype)
        if not 0.0 < eps < inf:
            raise ValueError(f"eps = {self.eps} is {eps} in {dtype}, expected a positive number there")
        for i, beta in enumerate(self.betas):
            if rounded(beta, dtype) == 1.0:
                raise ValueError(f"betas[{i}] = {beta} is 1 in {dtype}, expected a number below 1 there")


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    As Adam, but the gradient is left alone and p = p - lr weight_decay p comes before the update.
    """

    decoupled: ClassVar[bool] = True

    @names_nearest
    def __init__(
        self, params: Iterable[View] | None = None, lr: Number = 1e-3, betas: Sequence[Number] = (0.9, 0.999),
        eps: Number = 1e-8, weight_decay: Number = 0.01, *, no_decay: Iterable[str | int] = (),
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, no_decay=no_decay)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if asked for, in one pass over memory.

        g = g + weight_decay p
        u = momentum u + (1 - dampening) g     (u = g at the first step)
        p = p - lr u, or p - lr (g + momentum u) with nesterov (Sutskever et al. 2013, as torch.optim writes it)

    params, no_decay: see Optimizer.  lr, momentum, weight_decay: at least 0.  nesterov needs momentum and no dampening.
    """

    hyper: ClassVar[tuple[str, ...]] = ("momentum", "dampening", "nesterov")
    slots: tuple[str, ...]
    momentum: float
    dampening: float
    nesterov: bool

    @names_nearest
    def __init__(
        self, params: Iterable[View] | None = None, lr: Number = 1e-3, momentum: Number = 0.0, dampening: Number = 0.0,
        weight_decay: Number = 0.0, nesterov: Flag = False, *, no_decay: Iterable[str | int] = (),
    ) -> None:
        self.momentum, self.dampening = number("momentum", momentum, 0.0), number("dampening", dampening, 0.0)
        self.nesterov = flag("nesterov", nesterov)
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise ValueError(f"nesterov needs momentum > 0 and dampening 0, got {momentum} and {dampening}")
        self.slots = ("momentum_buffer",) if self.momentum else ()
        super().__init__(params, lr, weight_decay, no_decay)

    def _make_core(
        self, params: list[Values], states: list[list[Values]], decays: list[float], grads: list[Values] | None
    ) -> _core.variant.SGD:
        return _core.engine(params[0].dtype).SGD(
            params, states, decays, grads, self.momentum, self.dampening, self.nesterov
        )


OPTIMIZERS: dict[str, type[SGD] | type[Adam]] = {cls.__name__: cls for cls in (SGD, Adam, AdamW)}
