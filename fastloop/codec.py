"""What a checkpoint holds of a trainer, entry by entry, and how to pack and unpack it.

How named arrays and a description become a file, and what makes a file whole, is in checkpoint.py; nothing here opens
one.
"""

from __future__ import annotations

import json
import reprlib
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from . import models, schedules
from ._check import MOST_SEED
from .errors import CheckpointError
from .fit import Fit, Settings
from .history import History
from .optim import OPTIMIZERS
from .params import Params
from .tokenizer import CharTokenizer

if TYPE_CHECKING:
    from ._types import Array, Path, Schedule
    from .trainer import Trainer

    Arrays: TypeAlias = dict[str, Array]
    Meta: TypeAlias = dict[str, Any]
    AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)

# What each entry of a description must be: its types, and the interval [low, high) of a number.  A dict of
# arguments (of a model, an optimizer, a schedule, a tokenizer) is checked by the class that takes them, as a user's is.
NONE, REAL, INF = type(None), (int, float), float("inf")
COUNT, SIZE, WHOLE_OR_NONE = ((int,), 0, 2**63), ((int,), 1, 2**63), (int, NONE)
ENTRIES: dict[str, dict[str, tuple[Any, ...]]] = {
    "": {
        "format": SIZE, "model": ((dict,),), "optimizer": ((dict,),), "schedule": ((dict, NONE),),
        "tokenizer": ((dict, NONE),), "clip_norm": ((*REAL, NONE), 5e-324, INF),
        "clip_value": ((*REAL, NONE), 5e-324, INF), "grad_accum": SIZE, "steps": COUNT, "notes": ((),),
        "run": ((dict, NONE),), "classes": ((list, NONE),),
    },
    "run": {
        "steps": SIZE, "n_examples": SIZE, "batch_size": SIZE, "accumulate": SIZE, "order": ((str,),),
        "seed": ((int,), 0, MOST_SEED), "epochs": ((bool,),), "eval_every": SIZE, "patience": (WHOLE_OR_NONE, 1, 2**63),
        "min_delta": (REAL, 0.0, INF), "restore_best": ((bool,),), "tol": ((*REAL, NONE), 0.0, INF),
        "fingerprint": COUNT, "start": COUNT, "best_loss": ((*REAL, NONE), -INF, INF),
        "best_step": (WHOLE_OR_NONE, 0, 2**63), "stale": COUNT, "validation_fingerprint": (WHOLE_OR_NONE, 0, 2**63),
        "held_out": ((float, NONE), 5e-324, 1.0), "history": ((dict,),),
    },
    "run.history": {
        "start_step": COUNT, "predictions": COUNT, "cut": COUNT, "stop_reason": ((str, NONE),),
        "interrupted": ((bool,),),
    },
}
# The same for arrays: dtype (None: the model's), and the least allowed value, all values finite (None: any value, also
# NaN).
ARRAYS: dict[str, tuple[type | None, float | None]] = {
    "params": (None, None), "exp_avg": (None, -INF), "exp_avg_sq": (None, 0.0), "momentum_buffer": (None, -INF),
    "run/best_params": (None, None),
    **{f"run/history/{name}": (np.float64, None) for name in ("loss", "lr", "norm", "seconds", "evaluation_loss")},
    "run/history/clipped": (np.bool_, None), "run/history/evaluation_step": (np.int64, 0),
}
# Attributes of a Fit that are stored as they are.
STATE = ("start", "best_loss", "best_step", "stale", "validation_fingerprint")


# Into a checkpoint

def pack(trainer: Trainer) -> tuple[Arrays, Meta]:
    """(arrays, meta): the whole state of a trainer."""
    model, optimizer = trainer.model, trainer.optimizer
    arrays = {f"params/{name}": array for name, array in model.params.items()}
    arrays |= {f"{slot}/{name}": a for slot, params in optimizer.flats.items() for name, a in params.items()}
    meta = {
        "model": {"class": type(model).__name__, **model.config},
        "optimizer": {"class": type(optimizer).__name__, "t": optimizer.t, **optimizer.config},
        "schedule": getattr(trainer.schedule, "spec", None),
        "tokenizer": None if trainer.tokenizer is None else trainer.tokenizer.to_dict(),
        "clip_norm": trainer.clip_norm, "clip_value": trainer.clip_value, "grad_accum": trainer.grad_accum,
        "classes": model.classes.tolist() if isinstance(model, models.MLP) and model.classes is not None else None,
        "steps": trainer.steps, "notes": trainer.notes, "run": None,
    }
    if trainer.last_fit is not None:
        of_fit, meta["run"] = pack_fit(trainer.last_fit)
        arrays |= {f"run/{name}": array for name, array in of_fit.items()}
    return arrays, meta


def pack_fit(fit: Fit) -> tuple[Arrays, Meta]:
    """The same for a fit."""
    arrays, history = fit.history.to_arrays()
    arrays = {f"history/{name}": array for name, array in arrays.items()}
    if fit.best_params is not None:
        arrays["best_params"] = fit.best_params
    return arrays, {"history": history, **vars(fit.settings), **{name: getattr(fit, name) for name in STATE}}


def check_can_be_saved(trainer: Trainer) -> None:
    """Raise TypeError for what no checkpoint can restore."""
    if trainer.tokenizer is None and isinstance(trainer.model, models.LanguageModel):
        kind = type(trainer.model).__name__
        raise TypeError(f"a {kind} is saved with its tokenizer: Trainer(..., tokenizer=...)")
    known: dict[str, dict[str, Any]] = {"optimizer": OPTIMIZERS, "tokenizer": {"CharTokenizer": CharTokenizer}}
    for what, classes in known.items():
        kind = type(getattr(trainer, what))
        if classes.get(kind.__name__) is not kind and kind is not NONE:
            raise TypeError(
                f"the {what} is a {kind.__name__}, which cannot be saved: a checkpoint restores only "
                f"{', '.join(classes)}; keep model.params yourself"
            )
    try:
        json.dumps(trainer.notes)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"notes = {reprlib.repr(trainer.notes)} cannot be saved as JSON: {error}") from None


# Out of a checkpoint

def unpack(
    kind: type[AnyTrainer], path: Path, arrays: Arrays, meta: Meta, schedule: Schedule | None,
    model: models.Model | None,
) -> AnyTrainer:
    """The trainer, of class `kind`, that pack took apart; arrays is emptied.  model: as Trainer.load has it.

    Raises CheckpointError, with the path, where an entry is missing, not known or not what it must be.
    """
    try:
        check_description(meta)
        model = made_or_given(path, meta["model"], model)
        if meta["classes"] is not None:
            model.classes = meta["classes"]
        description = dict(meta["optimizer"])
        t = description.pop("t")
        optimizer = make(OPTIMIZERS, description)
        if schedule is None:
            if meta["schedule"] is None:
                raise CheckpointError(f"{path}: its schedule is the user's own function: pass schedule=...")
            schedule = schedules.from_spec(meta["schedule"])
        tokenizer = None if meta["tokenizer"] is None else CharTokenizer.from_dict(meta["tokenizer"])
        if tokenizer is None and isinstance(model, models.LanguageModel):
            raise ValueError("the tokenizer of a language model is missing")
        trainer = kind(
            model, optimizer, tokenizer=tokenizer, schedule=schedule, clip_norm=meta["clip_norm"],
            clip_value=meta["clip_value"], grad_accum=meta["grad_accum"],
        )
        values = Params(model.params.shapes, model.dtype)       # a given model is written to last
        for prefix, params in {"params": values, **optimizer.flats}.items():
            for name, shape in params.shapes.items():
                params[name] = take_array(arrays, prefix, f"{prefix}/{name}", shape, model.dtype)
        if type(t) is not int or not 0 <= t <= 2**53:
            raise ValueError(f"optimizer.t = {t!r} is not a number of steps")
        optimizer.t, trainer.steps, trainer.notes = t, meta["steps"], meta["notes"]
        if meta["run"] is not None:
            trainer.last_fit = unpack_fit(arrays, meta["run"], trainer.steps, model)
        if arrays:
            raise CheckpointError(f"{path}: holds arrays that are not known: {', '.join(arrays)}")
        model.params.flat = values.flat
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: does not describe a trainer ({type(error).__name__}: {error})") from error
    return trainer


def made_or_given(path: Path, description: Meta, given: models.Model | None) -> Any:
    """The model that a checkpoint describes: a new one, or, checked against it, the one that the user has given."""
    name = description.get("class")
    if given is None:
        if isinstance(name, str) and name not in models.CLASSES:
            raise CheckpointError(f"{path}: its model is a {name}, a class of your own: pass model={name}(...)")
        return make(models.CLASSES, description)
    if not isinstance(given, models.Model) or not hasattr(given, "params"):
        raise CheckpointError(f"{path}: model = {given!r:.80} is no model: pass a {name}, made as the saved one was")
    mine = {"class": type(given).__name__, **given.config}
    if mine != description:
        raise CheckpointError(f"{path}: its model is {told(description)}, the given one {told(mine)}")
    return given


def told(description: Meta) -> str:
    """A model's class and configuration in words."""
    config = dict(description)
    return f"{config.pop('class', None)}({', '.join(f'{name}={value!r}' for name, value in config.items())})"


def make(classes: dict[str, Any], description: Meta) -> Any:
    """The object of one of the classes that has this class and config; KeyError where its config has other names."""
    config = dict(description)
    made = classes[config.pop("class")](**config)
    if made.config.keys() != config.keys():
        raise KeyError(*(made.config.keys() ^ config.keys()))
    return made


def unpack_fit(arrays: Arrays, meta: Meta, steps: int, model: models.Model) -> Fit:
    """The fit of a trainer that has taken `steps` in all; ValueError where its entries do not fit."""
    settings = Settings(**{name: meta[name] for name in Settings.__dataclass_fields__})
    fit, columns = Fit(settings, meta["start"]), {}
    rows, evaluations = arrays["run/history/loss"].size, arrays["run/history/evaluation_step"].size
    for kind in ARRAYS:
        if kind.startswith("run/history/"):
            shape = (evaluations if "evaluation" in kind else rows,)
            columns[kind.removeprefix("run/history/")] = take_array(arrays, kind, kind, shape, model.dtype)
    if rows > min(steps - fit.start, settings.steps):
        raise ValueError(f"{rows} steps in the history of a run that began after {fit.start} of {steps}")
    for name in STATE:
        setattr(fit, name, meta[name])
    if (fit.best_loss is None) != (fit.best_step is None):
        raise ValueError(f"run.best_loss = {fit.best_loss}, but run.best_step = {fit.best_step}")
    if settings.restore_best and fit.best_loss is not None:
        best = "run/best_params"
        fit.best_params = take_array(arrays, best, best, (model.num_params,), model.dtype)
    fit.history = History.from_arrays(columns, meta["history"])
    return fit


def check_description(meta: Meta) -> None:
    """Raise ValueError unless a description has exactly the entries of ENTRIES, each of its type and in its range."""
    for where, entries in ENTRIES.items():
        table = meta
        for name in where.split("."):
            table = table.get(name) if name and table is not None else table
        if table is None:       # no run
            return
        if table.keys() != entries.keys():
            odd = ", ".join(sorted(map(str, table.keys() ^ entries.keys())))
            raise ValueError(f"entries of {where or 'the description'} that are missing or not known: {odd}")
        for name, (kinds, *interval) in entries.items():
            value, place = table[name], f"{where}.{name}".lstrip(".")
            if kinds and type(value) not in kinds:
                raise ValueError(f"{place} = {value!r:.80} must be of type {' or '.join(k.__name__ for k in kinds)}")
            if interval and value is not None and not interval[0] <= value < interval[1]:
                raise ValueError(f"{place} = {value} is outside [{interval[0]}, {interval[1]})")


def take_array(arrays: Arrays, kind: str, name: str, shape: tuple[int, ...], of_model: np.dtype[Any]) -> Array:
    """Remove the entry `name` from arrays and return it; ValueError where it is not of that shape, or not what ARRAYS
    says of its kind; of_model: the model's dtype."""
    array, (dtype, low) = arrays.pop(name), ARRAYS[kind]
    dtype = of_model if dtype is None else np.dtype(dtype)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape} of {array.dtype}, expected {shape} of {dtype}")
    if low is not None and not ((array >= low) & (array < INF) & (array > -INF)).all():
        raise ValueError(f"{name} has values that are not finite{', or negative ones' * (low == 0)}")
    return array
