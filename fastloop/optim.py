"""Optimisers: they own their moments and the step count, and update in place with one compiled pass.

The same object serves a model under a Trainer (`fl.Adam(lr=0.01)`) or the user's own float64 arrays
(`fl.Adam(params=[w, b])`, then `opt.step([gw, gb])`).  Argument names, defaults and state_dict() are torch.optim's.
"""

import numpy as np

from . import _core
from .params import Params


def view(name, value):
    """`value` as a contiguous, writeable float64 array that shares its memory; never a copy."""
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "__array__") and np.shares_memory(array := np.asarray(value), np.asarray(value)):
        pass
    else:
        raise TypeError(f"{name} must be a NumPy array or a CPU tensor, got {type(value).__name__}")
    if array.dtype != np.float64 or not array.dtype.isnative:
        raise TypeError(f"{name} must be float64, got {array.dtype}: fastloop updates in place and makes no copies")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"{name} must be contiguous and aligned, got strides {array.strides} for shape {array.shape}")
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    return array


def check(name, value, low, high=float("inf"), open_low=False):
    """`value` as a float in [low, high), or in (low, high)."""
    if not (value > low if open_low else value >= low) or not value < high:
        raise ValueError(f"{name} = {value} is outside {'(' if open_low else '['}{low:g}, {high:g})")
    return float(value)


class Optimizer:
    """What Adam, AdamW and SGD share.

    params: list of float64 arrays to update in place, or None: then a Trainer binds the optimiser to its model.
    no_decay: what weight decay spares: names of a model's tensors (a last part such as "bias" stands for all of that
    name), or places in the list.
    """

    hyper = ()      # names of the hyperparameters beside lr and weight_decay, as attributes and in state_dict()
    slots = ()      # torch.optim's names of the state arrays

    def __init__(self, params, lr, weight_decay, no_decay=()):
        self.lr = lr
        self.weight_decay = check("weight_decay", weight_decay, 0.0)
        self.no_decay = tuple(no_decay)
        self._steps = 0
        self._core = None       # the compiled optimiser, where a model is bound
        self.model = None
        self.flats = {}         # slot -> Params in the model's shapes
        self._params = None
        if params is not None:
            self._params = [view(f"params[{i}]", p) for i, p in enumerate(params)]
            if not self._params:
                raise ValueError("params is empty")
            _refuse_overlap("params", self._params, "params", self._params)
            self._state = [{slot: np.zeros_like(p) for slot in self.slots} for p in self._params]
            places = range(len(self._params))
            if not set(self.no_decay) <= set(places):
                raise ValueError(f"no_decay = {self.no_decay} names no place in a list of {len(self._params)} arrays")
            self._decays = [0.0 if i in self.no_decay else self.weight_decay for i in places]

    @property
    def lr(self):
        """The learning rate, before any schedule's factor."""
        return self._lr

    @lr.setter
    def lr(self, value):
        self._lr = check("lr", value, 0.0)

    @property
    def t(self):
        """Steps taken."""
        return self._core.t if self._core is not None else self._steps

    @t.setter
    def t(self, value):
        self._steps = value
        if self._core is not None:
            self._core.t = value

    def bind(self, model):
        """Take over a model's buffers; the Trainer calls this.  Binding to the same model again changes nothing."""
        if self._params is not None:
            raise ValueError("this optimiser was made for arrays (params=...) and cannot serve a Trainer as well")
        if self.model is model:
            return self._core
        if self.model is not None:
            raise ValueError("this optimiser already serves another model; make one for each")
        self.model = model
        self.flats = {slot: Params(model.params.shapes) for slot in self.slots}
        self._state = [{slot: self.flats[slot][name] for slot in self.slots} for name in model.params]
        spared = [any(name == n or name.endswith("." + n) for n in self.no_decay) for name in model.params]
        for n in self.no_decay:
            if not any(name == n or name.endswith("." + n) for name in model.params):
                raise ValueError(f"no_decay = {n!r} is not one of {', '.join(model.params)}")
        bounds, decays = [0], []
        for name, spare in zip(model.params, spared, strict=True):
            decay = 0.0 if spare else self.weight_decay
            if decays and decays[-1] == decay:
                bounds[-1] += model.params[name].size
            else:
                bounds.append(bounds[-1] + model.params[name].size)
                decays.append(decay)
        self._core = self._make_core(
            model.grads.flat, model.params.flat, np.array(bounds, np.int64), np.array(decays),
            *(self.flats[slot].flat for slot in self.slots),
        )
        self._core.t = self._steps
        return self._core

    def step(self, grads):
        """One update of the arrays given as params, in place.

        grads: a list of float64 arrays of the same shapes; they are read, not changed.  Raises TypeError or ValueError
        before anything is written.
        """
        if self._params is None:
            raise TypeError("step(grads) serves an optimiser made with params; under a Trainer call trainer.step()")
        grads = list(grads)
        if len(grads) != len(self._params):
            raise ValueError(f"{len(grads)} gradients for {len(self._params)} params")
        for i, (g, p) in enumerate(zip(grads, self._params, strict=True)):
            grads[i] = view(f"grads[{i}]", g)
            if grads[i].shape != p.shape:
                raise ValueError(f"grads[{i}] has shape {grads[i].shape}, params[{i}] {p.shape}")
        _refuse_overlap("grads", grads, "params", self._params)
        self._steps += 1
        for g, p, state, decay in zip(grads, self._params, self._state, self._decays, strict=True):
            self._update(g.reshape(-1), p.reshape(-1), *(state[slot].reshape(-1) for slot in self.slots), decay)

    def _make_core(self, grad, param, bounds, decays, *slots):
        raise NotImplementedError

    def _update(self, grad, param, *slots_and_decay):
        raise NotImplementedError

    def state_dict(self):
        """Copies of the state in torch.optim's layout: {"state": {i: {...}}, "param_groups": [{...}]}.

        Tensor i is the i-th of params, or of the bound model's tensors in their order.  lr is without the schedule.
        """
        tensors = self._state if self._params is not None or self.model is not None else []
        copies = [{slot: array.copy() for slot, array in slots.items()} for slots in tensors]
        state = {i: {"step": self.t, **slots} for i, slots in enumerate(copies)}
        group = {"lr": self.lr, **{name: getattr(self, name) for name in self.hyper}, "weight_decay": self.weight_decay}
        return {"state": state, "param_groups": [{**group, "params": list(range(len(tensors)))}]}

    def load_state_dict(self, state_dict):
        """Take over a state_dict() of the same kind, over tensors of the same shapes; ValueError before any change."""
        group, state = state_dict["param_groups"][0], state_dict["state"]
        if self._params is None and self.model is None:
            raise ValueError("bind the optimiser to a model first (fl.Trainer(model, opt)), then load its state")
        for name in self.hyper:
            current, new = getattr(self, name), group[name]
            if current != (tuple(new) if isinstance(new, list) else new):
                raise ValueError(f"{name} = {new} in the state, {current} in this optimiser")
        if len(state) not in (0, len(self._state)):
            raise ValueError(f"{len(state)} tensors in the state, {len(self._state)} in this optimiser")
        for i, entry in state.items():
            for slot, array in self._state[int(i)].items():
                if np.shape(entry[slot]) != array.shape:
                    raise ValueError(f"{slot} of tensor {i} has shape {np.shape(entry[slot])}, expected {array.shape}")
        self.lr = group["lr"]
        self.t = max((int(entry["step"]) for entry in state.values()), default=0)
        for i, entry in state.items():
            for slot, array in self._state[int(i)].items():
                array[...] = entry[slot]

    @property
    def config(self):
        """The arguments that make an optimiser like this one."""
        hyper = {name: getattr(self, name) for name in self.hyper}
        return {"lr": self.lr, **hyper, "weight_decay": self.weight_decay, "no_decay": self.no_decay}

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self.config.items())})"


def _refuse_overlap(name, arrays, other_name, others):
    for i, a in enumerate(arrays):
        for j, b in enumerate(others if arrays is not others else others[:i]):
            if np.may_share_memory(a, b):
                raise ValueError(f"{name}[{i}] and {other_name}[{j}] share memory")


class Adam(Optimizer):
    """Adam with bias correction (Kingma and Ba 2015, algorithm 1) in one pass over memory.

        g = g + weight_decay p
        m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2
        p = p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    params, no_decay: see Optimizer.  lr: step size, at least 0; a Trainer multiplies it by its schedule.
    betas: each in [0, 1).  eps: greater than 0.  weight_decay: at least 0.

    Differs from the paper: a moment whose magnitude falls below 1e-290 is set to 0, since arithmetic on the subnormal
    numbers that would follow slows every later step.
    """

    hyper = ("betas", "eps")
    slots = ("exp_avg", "exp_avg_sq")
    decoupled = False

    def __init__(self, params=None, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, *, no_decay=()):
        self.betas = (check("betas[0]", betas[0], 0.0, 1.0), check("betas[1]", betas[1], 0.0, 1.0))
        self.eps = check("eps", eps, 0.0, open_low=True)    # with 0, a gradient that stays 0 would give 0 / 0
        super().__init__(params, lr, weight_decay, no_decay)

    def _make_core(self, grad, param, bounds, decays, m, v):
        return _core.variant.Adam(grad, param, bounds, decays, m, v, *self.betas, self.eps, self.decoupled)

    def _update(self, grad, param, m, v, decay):
        _core.variant.adam_step(
            grad, param, m, v, self.lr, *self.betas, self.eps, self._steps, decay, self.decoupled, 1.0, False
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    As Adam, but the gradient is left alone and p = p - lr weight_decay p comes before the update.
    """

    decoupled = True

    def __init__(self, params=None, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, *, no_decay=()):
        super().__init__(params, lr, betas, eps, weight_decay, no_decay=no_decay)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if asked for, in one pass over memory.

        g = g + weight_decay p
        u = momentum u + (1 - dampening) g     (u = g at the first step)
        p = p - lr u, or p - lr (g + momentum u) with nesterov (Sutskever et al. 2013, as torch.optim writes it)

    params, no_decay: see Optimizer.  lr, momentum, weight_decay: at least 0.  nesterov needs momentum and no dampening.
    """

    hyper = ("momentum", "dampening", "nesterov")

    def __init__(
        self, params=None, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, *, no_decay=()
    ):
        self.momentum = check("momentum", momentum, 0.0)
        self.dampening = check("dampening", dampening, 0.0)
        self.nesterov = bool(nesterov)
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise ValueError(f"nesterov needs momentum > 0 and dampening 0, got {momentum} and {dampening}")
        self.slots = ("momentum_buffer",) if self.momentum else ()
        super().__init__(params, lr, weight_decay, no_decay)

    def _make_core(self, grad, param, bounds, decays, velocity=None):
        return _core.variant.SGD(
            grad, param, bounds, decays, velocity, self.momentum, self.dampening, self.nesterov
        )

    def _update(self, grad, param, *velocity_and_decay):
        *velocity, decay = velocity_and_decay
        _core.variant.sgd_step(
            grad, param, velocity[0] if velocity else None,
            self.lr, self.momentum, self.dampening, self.nesterov, self._steps, decay, 1.0, False,
        )


OPTIMIZERS = {cls.__name__: cls for cls in (SGD, Adam, AdamW)}
