"""Adam, AdamW and SGD for PyTorch: torch.optim's, with the update of all tensors in one compiled call.

They are subclasses of torch's own classes, so that groups, hooks, schedulers, state_dict and whatever looks for a
torch optimiser find what they expect; only the step is another.  For tensors on the CPU, dense, float32 or float64.
Importing this module imports torch, which nothing else in the package does.

Unlike torch's, a step checks first that every gradient is finite, and raises before any tensor changes where one is
not; check_finite=False leaves that out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, ClassVar, TypeAlias

import numpy as np

from . import _core
from .errors import DivergenceError
from .extras import load

torch: Any = load("torch", "torch", "fastloop.torch")     # a type checker need not have it

Tensor: TypeAlias = Any
Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
Hyper: TypeAlias = tuple[float, float, float, float, float, bool, float]
DTYPES = torch.float32, torch.float64
REFUSED = "amsgrad", "capturable", "differentiable"     # options of torch's that are not offered


class Compiled(torch.optim.Optimizer):      # type: ignore[misc]
    """What the three share: the checks of what they are given, and the step."""

    slots: ClassVar[tuple[str, ...]]            # names of the tensors of a parameter's state, beside "step"
    counts: ClassVar[bool] = True               # whether the state has a "step"
    check_finite: bool
    param_groups: list[dict[str, Any]]
    state: Any
    defaults: dict[str, Any]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's.  Raises TypeError, with the parameter's place, for another device, dtype or layout than those
        offered here, ValueError for amsgrad, capturable, differentiable."""
        group = dict(param_group)
        given = group.get("params", ())
        group["params"] = [given] if isinstance(given, torch.Tensor) else list(given)
        for i, param in enumerate(group["params"]):
            tensor = param[1] if isinstance(param, tuple) and len(param) == 2 else param
            if isinstance(tensor, torch.Tensor):        # anything else torch refuses
                self._check_tensor(f"params[{i}]", tensor)
        self._check_options({**self.defaults, **group})
        super().add_param_group(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:         # of another optimiser's state_dict
            self._check_options(group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "check_finite": self.check_finite}

    def _check_options(self, group: dict[str, Any]) -> None:
        for name in REFUSED:
            if group.get(name):
                raise ValueError(
                    f"{name} = {group[name]} is not offered by fastloop.torch.{type(self).__name__}: take torch.optim's"
                )

    def _check_tensor(self, name: str, tensor: Tensor) -> None:
        what = None
        if tensor.device.type != "cpu":
            what = f"is on {tensor.device}, expected a tensor on the CPU"
        elif tensor.layout != torch.strided:
            what = f"is {tensor.layout}, expected a dense tensor"
        elif tensor.dtype not in DTYPES:
            what = f"has dtype {tensor.dtype}, expected float32 or float64"
        elif torch.empty_like(tensor).stride() != tensor.stride():
            what = f"has strides {tensor.stride()} with shape {tuple(tensor.shape)}, expected memory without gaps"
        if what:
            raise TypeError(f"{name} {what}: fastloop.torch.{type(self).__name__} cannot update it, torch.optim's can")

    def _check_entry(self, param: Tensor, entry: dict[str, Any], slots: tuple[str, ...]) -> None:
        """Make the state of a parameter fit for a step; called for each before its first, and where a tensor of it, or
        its place in memory, is a new one."""
        self._check_tensor("a parameter", param)
        with torch.no_grad():
            for slot in slots:
                entry[slot] = self._laid_out(param, slot, entry.get(slot))
            if self.counts:
                step = entry.get("step", 0.0)
                if not isinstance(step, torch.Tensor) or step.dtype not in DTYPES or step.numel() != 1:
                    double = torch.get_default_dtype() == torch.float64
                    entry["step"] = torch.tensor(float(step), dtype=torch.float64 if double else torch.float32)
                elif step.device.type != "cpu":
                    entry["step"] = step.cpu()

    def _check_apart(self, params: list[Tensor]) -> None:
        """Refuse parameters of which two lie in the same memory: several threads would update them at once."""
        ranges = sorted((p.data_ptr(), p.data_ptr() + p.numel() * p.itemsize, i) for i, p in enumerate(params))
        ranges = [(start, end, i) for start, end, i in ranges if start < end]
        for (_, end, i), (start, _, j) in pairwise(ranges):
            if start < end:
                shapes = f"of shapes {tuple(params[i].shape)} and {tuple(params[j].shape)}"
                raise ValueError(f"two parameters, {shapes}, overlap in memory")

    def _laid_out(self, param: Tensor, name: str, value: Any) -> Tensor:
        """A tensor that goes with a parameter, in its layout: value itself, a copy of it, or zeros for None."""
        if value is None:
            return torch.zeros_like(param, memory_format=torch.preserve_format)
        if not isinstance(value, torch.Tensor) or value.shape != param.shape or value.dtype != param.dtype:
            got = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, torch.Tensor) else repr(value)
            raise TypeError(f"{name} is {got}, its parameter {tuple(param.shape)} of {param.dtype}")
        if value.device.type != "cpu" or value.layout != torch.strided:
            self._check_tensor(name, value)
        if value.stride() == param.stride() and not value.is_neg():
            return value
        return torch.empty_like(param).copy_(value)

    def _like(self, param: Tensor, grad: Tensor) -> Tensor:
        with torch.no_grad():
            return self._laid_out(param, "a gradient", grad)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient, in place; returns what closure gave, or None.

        closure: computes the loss and its gradients anew, as torch's.  Raises DivergenceError, before any tensor is
        changed, where a gradient is not finite (unless check_finite=False); TypeError for a gradient that is sparse or
        not of its parameter's dtype and shape.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tensors: Any = vars(self).get("_tensors")       # made late: a copy has none
        if tensors is None:
            single, double = (_core.engine(np.dtype(name)).kernels for name in ("float32", "float64"))
            tensors = self._tensors = _core.variant.Tensors(
                single, double, self.counts, self.slots, self._check_entry, self._check_apart, self._like
            )
        odd = tensors.step(self.param_groups, self.state, [self._hyper(group) for group in self.param_groups],
                           self.check_finite)
        if odd is not None:
            self._refuse(odd)
        torch.autograd.graph.increment_version(tensors.params)
        return loss

    def _hyper(self, group: dict[str, Any]) -> Hyper:
        """(lr, three hyperparameters, weight_decay, decoupled, sign of the gradient) of a group."""
        raise NotImplementedError

    def _refuse(self, odd: Tensor) -> None:
        groups = enumerate(self.param_groups)
        g, i = next((g, i) for g, group in groups for i, p in enumerate(group["params"]) if p is odd)
        names = self.param_groups[g].get("param_names")
        name = f" ({names[i]})" if names else ""
        lr = float(self.param_groups[g]["lr"])
        norm = float(torch.linalg.vector_norm(odd.grad.detach()))
        raise DivergenceError(
            f"the gradient of param_groups[{g}]['params'][{i}]{name} is not finite (norm {norm:.3g}, lr {lr:.3g}); "
            "parameters and state are as they were before this step. Try a smaller lr, or look for extreme values in "
            "the data", None, None, norm, lr,
        )


class Adam(Compiled, torch.optim.Adam):     # type: ignore[misc]
    """torch.optim.Adam with a compiled step.

    params, lr, betas, eps, weight_decay, maximize, decoupled_weight_decay: as torch's, a group's own included.  foreach
    and fused choose among torch's own implementations, and change nothing here; amsgrad, capturable and differentiable
    are refused.  check_finite: whether a step checks first that every gradient is finite.

    The formula is that of fastloop.Adam, with its limits for tiny moments; the state is torch's (step, exp_avg,
    exp_avg_sq), so that state_dict() goes to torch.optim.Adam and back.
    """

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, amsgrad: bool = False, *, foreach: bool | None = None, maximize: bool = False,
        capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
        decoupled_weight_decay: bool = False, check_finite: bool = True,
    ) -> None:
        self.check_finite = bool(check_finite)
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, capturable=capturable,
            differentiable=differentiable, decoupled_weight_decay=decoupled_weight_decay,
        )

    def _hyper(self, group: dict[str, Any]) -> Hyper:
        beta1, beta2 = group["betas"]
        return (
            group["lr"], beta1, beta2, group["eps"], group["weight_decay"], group["decoupled_weight_decay"],
            -1.0 if group["maximize"] else 1.0,
        )


class AdamW(Compiled, torch.optim.AdamW):   # type: ignore[misc]
    """torch.optim.AdamW with a compiled step; see Adam."""

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        capturable: bool = False, differentiable: bool = False, fused: bool | None = None, check_finite: bool = True,
    ) -> None:
        self.check_finite = bool(check_finite)
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, capturable=capturable,
            differentiable=differentiable,
        )

    _hyper = Adam._hyper


class SGD(Compiled, torch.optim.SGD):       # type: ignore[misc]
    """torch.optim.SGD with a compiled step.

    params, lr, momentum, dampening, weight_decay, nesterov, maximize: as torch's, a group's own included; foreach,
    fused, differentiable and check_finite: see Adam.  The state is torch's (momentum_buffer).
    """

    slots = ("momentum_buffer",)        # of the groups with momentum
    counts = False

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, momentum: float = 0.0, dampening: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        differentiable: bool = False, fused: bool | None = None, check_finite: bool = True,
    ) -> None:
        self.check_finite = bool(check_finite)
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize, differentiable=differentiable,
        )

    def _hyper(self, group: dict[str, Any]) -> Hyper:
        return (
            group["lr"], group["momentum"], group["dampening"], group["nesterov"], group["weight_decay"], False,
            -1.0 if group["maximize"] else 1.0,
        )
