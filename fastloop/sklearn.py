"""MLPClassifier and MLPRegressor of scikit-learn, trained by compiled code: the same arguments, attributes and results.

They are subclasses of scikit-learn's own, which go on to check what they are given, to draw the initial weights and the
shuffles, to predict and to score; the steps of the solvers "sgd" and "adam" are fastloop's, an epoch in one call.
Sparse X and the solver "lbfgs" are left to scikit-learn's code.  Importing this module imports scikit-learn, which
nothing else in the package does.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from . import _core, checkpoint
from .extras import load
from .params import Params

neural_network: Any = load("sklearn.neural_network", "sklearn", "fastloop.sklearn")
_stochastic: Any = load("sklearn.neural_network._stochastic_optimizers", "sklearn", "fastloop.sklearn")
_utils: Any = load("sklearn.utils", "sklearn", "fastloop.sklearn")
_class_weight: Any = load("sklearn.utils.class_weight", "sklearn", "fastloop.sklearn")
_selection: Any = load("sklearn.model_selection", "sklearn", "fastloop.sklearn")
_exceptions: Any = load("sklearn.exceptions", "sklearn", "fastloop.sklearn")
_base: Any = load("sklearn.base", "sklearn", "fastloop.sklearn")
_validation: Any = load("sklearn.utils._param_validation", "sklearn", "fastloop.sklearn")

if TYPE_CHECKING:
    from ._types import Array, Floats, Ints, Path

    Callbacks = Iterable[Callable[[Any], object]]

CALL_WORK = 300_000_000     # weights times rows in one compiled call, some 0.1 s, after which Ctrl-C is answered
ACTIVATED = {"identity": "squared_error", "softmax": "log_loss", "logistic": "binary_log_loss", "exp": "poisson"}
NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
    "preprocessed. (Step {step} would have written them: its loss is {loss:.3g}, the norm of its gradient {norm:.3g}; "
    "the weights are those before it.)"
)


class NotFiniteError(ValueError):
    """A step would have written weights that are not finite."""


class Run:
    """The compiled step over copies of an estimator's weights, and of its optimiser's moments.

    layers: the widths.  X (n, layers[0]); y (n, layers[-1]) as scikit-learn has it, classes as columns of 0 and 1;
    sample_weight (n,) or None.
    """

    def __init__(
        self, estimator: Any, layers: list[int], X: Array, y: Array, sample_weight: Array | None
    ) -> None:
        dtype, engine = X.dtype, _core.engine(X.dtype)
        self.estimator, self.optimizer, self.dtype = estimator, estimator._optimizer, dtype
        loss = ACTIVATED[estimator.out_activation_]
        shapes = engine.MLP.tensors(layers)
        self.params, self.grads = Params(shapes, dtype), Params(shapes, dtype)
        adam = isinstance(self.optimizer, _stochastic.AdamOptimizer)
        self.moments = [Params(shapes, dtype) for _ in range(2 if adam else 1)]
        model = engine.MLP(
            self.params.flat, self.grads.flat, layers, engine.ACTIVATIONS.index(estimator.activation),
            engine.LOSSES.index(loss), float(estimator.alpha),
        )
        flats = [self.params.flat], [[moments.flat for moments in self.moments]], [0.0], [self.grads.flat]
        if adam:
            o = self.optimizer
            self.core = engine.Adam(*flats, float(o.beta_1), float(o.beta_2), float(o.epsilon), False, True)
            self.core.t = o.t
        else:
            self.core = engine.SGD(*flats, float(self.optimizer.momentum), 0.0, bool(self.optimizer.nesterov))
            self.core.t = 1         # a velocity of 0 is one, too
        self.loop = _core.variant.Loop(model, self.core)
        self.batch = _core.variant.ArrayBatch(rows(X, y, sample_weight, loss == "log_loss", dtype))
        self.lr = self.read()

    def tensors(self, params: Params) -> list[Array]:
        """Views in scikit-learn's order and orientation: the coefficients (in, out) of all layers, then the biases."""
        views = list(params.values())
        return [weight.T for weight in views[::2]] + views[1::2]

    def read(self) -> float:
        """Take over the estimator's weights and moments; returns the learning rate."""
        optimizer, lr = self.optimizer, float(self.optimizer.learning_rate)
        for mine, value in zip(self.tensors(self.params), weights_of(self.estimator), strict=True):
            mine[...] = value
        if len(self.moments) == 2:
            for moments, values in zip(self.moments, (optimizer.ms, optimizer.vs), strict=True):
                for mine, value in zip(self.tensors(moments), values, strict=True):
                    mine[...] = value
            return float(optimizer.learning_rate_init)
        # scikit-learn's velocity is -lr times this one, so a learning rate that has changed since scales it.
        for mine, value in zip(self.tensors(self.moments[0]), optimizer.velocities, strict=True):
            mine[...] = value / -lr
        return lr

    def write(self) -> None:
        """Write weights and moments back, into the estimator's own arrays and its optimiser's lists."""
        optimizer = self.optimizer
        for mine, value in zip(self.tensors(self.params), weights_of(self.estimator), strict=True):
            value[...] = mine
        copies = [[mine.copy() for mine in self.tensors(moments)] for moments in self.moments]
        if len(copies) == 2:
            optimizer.ms, optimizer.vs = copies
            optimizer.t = t = self.core.t
            optimizer.learning_rate = (
                optimizer.learning_rate_init * np.sqrt(1 - optimizer.beta_2**t) / (1 - optimizer.beta_1**t)
            )
        else:
            optimizer.velocities = [-self.lr * velocity for velocity in copies[0]]

    def rescale(self) -> None:
        """Go on with the optimiser's learning rate, where an epoch's end has changed it."""
        if len(self.moments) == 1 and self.optimizer.learning_rate != self.lr:
            new = float(self.optimizer.learning_rate)
            self.moments[0].flat *= self.lr / new
            self.lr = new

    def epoch(self, order: Ints, size: int) -> float:
        """Take a step for every `size` of the rows in that order; returns the mean loss of a row.

        Raises NotFiniteError where a step would not be finite; the steps before it have been taken.
        """
        splits = np.append(np.arange(0, len(order), size), len(order))
        losses, norms = np.empty(len(splits) - 1), np.empty(len(splits) - 1)
        steps = max(1, CALL_WORK // (self.params.flat.size * size))
        for first in range(0, len(losses), steps):
            some = slice(first, first + steps)
            count = len(losses[some])
            taken = self.loop.run(
                self.batch, order, splits[first : first + count + 1], 1, np.full(count, self.lr), np.inf, losses[some],
                norms[some],
            )
            if taken < count:
                bad = first + taken
                raise NotFiniteError(NOT_FINITE.format(step=bad + 1, loss=losses[bad], norm=norms[bad]))
        return float(losses @ np.diff(splits)) / len(order)

    def mean_loss(self, data: Any) -> float:
        """The mean loss of the rows of compiled data, without the penalty."""
        batch = _core.variant.ArrayBatch(data)
        batch.take(np.arange(data.n_examples), data.n_examples)
        loop = _core.variant.Loop(self.loop.model, None)
        loop.forward(batch)
        return float(loop.total_loss()) / data.n_examples


def rows(X: Array, y: Array, sample_weight: Array | None, of_classes: bool, dtype: np.dtype[Any]) -> Any:
    """The compiled data."""
    weights = None if sample_weight is None else np.ascontiguousarray(sample_weight, np.float64)
    X = np.array(X, dtype, order="C")
    if of_classes:
        return _core.variant.ArrayData(X, None, np.ascontiguousarray(y.argmax(axis=1), np.int64), weights)
    return _core.variant.ArrayData(X, np.array(y, dtype, order="C"), None, weights)


def weights_of(estimator: Any) -> list[Array]:
    return [*estimator.coefs_, *estimator.intercepts_]


class Compiled:
    """What the two share, before scikit-learn's own class among the bases."""

    # Beside what scikit-learn's classes have
    reset_optimizer: bool
    callbacks: Callbacks | None
    checkpoint: Path | None

    def _fit_stochastic(
        self: Any, X: Any, y: Array, sample_weight: Floats | None, activations: Any, deltas: Any, coef_grads: Any,
        intercept_grads: Any, layer_units: list[int], incremental: bool,
    ) -> None:
        if not isinstance(X, np.ndarray):
            super()._fit_stochastic(        # type: ignore[misc]
                X, y, sample_weight, activations, deltas, coef_grads, intercept_grads, layer_units, incremental
            )
            return
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        self._make_optimizer(keep=incremental or not self.reset_optimizer)
        (X, y, sample_weight), held, held_rows = self._hold_out(X, y, sample_weight)
        n, size = len(X), self._batch_rows(len(X))
        order = np.arange(n)
        run = Run(self, list(layer_units), X, y, sample_weight)
        watched = held is not None or self.callbacks is not None or self.checkpoint is not None
        self.n_iter_, epochs = 0, 1 if incremental else self.max_iter
        try:
            for epoch in range(epochs):
                if self.shuffle:
                    order = _utils.shuffle(order, random_state=self._random_state)
                try:
                    self.loss_ = run.epoch(order, size)
                except NotFiniteError as error:
                    if held is None:
                        raise
                    self._give_up(error)
                    break
                self.n_iter_ += 1
                self.t_ += n
                self.loss_curve_.append(self.loss_)
                if watched or epoch == epochs - 1:
                    run.write()
                if self.verbose:
                    print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
                if self._end_epoch(run, held, held_rows) or incremental:
                    break
                if self.n_iter_ == self.max_iter:
                    warnings.warn(
                        f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization "
                        "hasn't converged yet.", _exceptions.ConvergenceWarning, stacklevel=2,
                    )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=2)
        finally:
            run.write()
        if held is not None:
            self.coefs_, self.intercepts_ = self._best_coefs, self._best_intercepts

    def _make_optimizer(self: Any, keep: bool) -> None:
        """scikit-learn's object for the state of the optimiser, a new one unless the last is to be kept and fits."""
        params = weights_of(self)
        if keep and hasattr(self, "_optimizer"):
            kept = getattr(self._optimizer, "ms", None) or getattr(self._optimizer, "velocities", [])
            kind = _stochastic.SGDOptimizer if self.solver == "sgd" else _stochastic.AdamOptimizer
            if isinstance(self._optimizer, kind) and [a.shape for a in kept] == [p.shape for p in params]:
                return
        if self.solver == "sgd":
            self._optimizer = _stochastic.SGDOptimizer(
                params, self.learning_rate_init, self.learning_rate, self.momentum, self.nesterovs_momentum,
                self.power_t,
            )
        else:
            self._optimizer = _stochastic.AdamOptimizer(
                params, self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon
            )

    def _hold_out(self: Any, X: Array, y: Array, sample_weight: Any) -> tuple[tuple[Any, Any, Any], Any, Any]:
        """(X, y, sample_weight) to train on; and with early_stopping the same for validation, with labels as y, and
        those rows as compiled data, else None twice."""
        if not self.early_stopping:
            return (X, y, sample_weight), None, None
        classifies = _base.is_classifier(self)
        arrays = [X, y] if sample_weight is None else [X, y, sample_weight]
        parts = _selection.train_test_split(
            *arrays, random_state=self._random_state, test_size=self.validation_fraction,
            stratify=y if classifies and self.n_outputs_ == 1 else None,
        )
        train, held = parts[::2], parts[1::2]
        if len(held[0]) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        held_rows = rows(held[0], held[1], None, self.out_activation_ == "softmax", X.dtype)
        if classifies:
            held[1] = self._label_binarizer.inverse_transform(held[1])
        if not self.validation_scores_:         # no warm start
            self.validation_loss_curve_: list[float] = []
        pad = [] if sample_weight is not None else [None]
        return tuple(train + pad), tuple(held + pad), held_rows

    def _batch_rows(self: Any, n: int) -> int:
        if self.batch_size == "auto":
            return min(200, n)
        if self.batch_size > n:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=3
            )
        return int(np.clip(self.batch_size, 1, n))

    def _give_up(self: Any, error: NotFiniteError) -> None:
        """With early_stopping, what scikit-learn's classes come to where the weights are no longer finite: scores that
        are NaN, and in the end the weights of the best epoch."""
        self.loss_ = float("nan")
        self.n_iter_ += 1
        for curve in (self.loss_curve_, self.validation_scores_, self.validation_loss_curve_):
            curve.append(float("nan"))
        warnings.warn(f"{error} The training has ended.", _exceptions.ConvergenceWarning, stacklevel=3)

    def _end_epoch(self: Any, run: Run, held: Any, held_rows: Any) -> bool:
        """What an epoch ends with; whether it was the last."""
        self._update_no_improvement_count(held is not None, *(held or (None, None, None)))
        if held is not None:
            self.validation_loss_curve_.append(run.mean_loss(held_rows))
        self._optimizer.iteration_ends(self.t_)
        last = False
        if self._no_improvement_count > self.n_iter_no_change:
            what = "Validation score" if held is not None else "Training loss"
            last = self._optimizer.trigger_stopping(
                f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change:d} consecutive epochs.",
                self.verbose,
            )
            if not last:
                self._no_improvement_count = 0
        run.rescale()
        stops = [callback(self) is True for callback in self.callbacks or ()]
        if self.checkpoint is not None:
            checkpoint.atomically(self.checkpoint, pickle.dumps(self))
        return last or any(stops)


DOC = """

    reset_optimizer: whether a further fit with warm_start begins with new moments, as scikit-learn's does.  callbacks:
    functions that are called with the estimator after each epoch; one that returns True ends the training.  checkpoint:
    a file that gets the pickled estimator after each epoch, whole or not at all; to go on from it, unpickle it and fit
    with warm_start=True, reset_optimizer=False.

    Beside scikit-learn's attributes, with early_stopping: validation_loss_curve_, the mean loss of the held-out rows
    (without the penalty) after each epoch.
    """


# Checked by scikit-learn, as its own arguments are.
CONSTRAINTS = {"reset_optimizer": ["boolean"], "callbacks": [list, tuple, None], "checkpoint": [str, os.PathLike, None]}


class MLPClassifier(Compiled, neural_network.MLPClassifier):     # type: ignore[misc]
    __doc__ = f"""scikit-learn's MLPClassifier, trained by compiled code; its arguments, and four more.

    class_weight: dict of label -> weight, "balanced" for weights inverse to the classes' frequencies, or None: each
    row's weight is multiplied by its class's.{DOC}"""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPClassifier._parameter_constraints, **CONSTRAINTS,
        "class_weight": [dict, _validation.StrOptions({"balanced"}), None],
    }

    def __init__(
        self, hidden_layer_sizes: Any = (100,), activation: str = "relu", *, solver: str = "adam",
        alpha: float = 0.0001, batch_size: Any = "auto", learning_rate: str = "constant",
        learning_rate_init: float = 0.001, power_t: float = 0.5, max_iter: int = 200, shuffle: bool = True,
        random_state: Any = None, tol: float = 1e-4, verbose: Any = False, warm_start: bool = False,
        momentum: float = 0.9, nesterovs_momentum: bool = True, early_stopping: bool = False,
        validation_fraction: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8,
        n_iter_no_change: float = 10, max_fun: int = 15000, class_weight: Any = None,
        reset_optimizer: bool = True, callbacks: Callbacks | None = None, checkpoint: Path | None = None,
    ) -> None:
        super().__init__(
            hidden_layer_sizes, activation, solver=solver, alpha=alpha, batch_size=batch_size,
            learning_rate=learning_rate, learning_rate_init=learning_rate_init, power_t=power_t, max_iter=max_iter,
            shuffle=shuffle, random_state=random_state, tol=tol, verbose=verbose, warm_start=warm_start,
            momentum=momentum, nesterovs_momentum=nesterovs_momentum, early_stopping=early_stopping,
            validation_fraction=validation_fraction, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon,
            n_iter_no_change=n_iter_no_change, max_fun=max_fun,
        )
        self.class_weight, self.reset_optimizer = class_weight, reset_optimizer
        self.callbacks, self.checkpoint = callbacks, checkpoint

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False) -> Any:
        if self.class_weight is not None:
            if incremental and isinstance(self.class_weight, str):
                raise ValueError(
                    f"class_weight = {self.class_weight!r} depends on all of y, of which partial_fit sees a part: give "
                    "a dict of label -> weight"
                )
            of_classes = _class_weight.compute_sample_weight(self.class_weight, y)
            sample_weight = of_classes if sample_weight is None else of_classes * np.asarray(sample_weight)
        return super()._fit(X, y, sample_weight=sample_weight, incremental=incremental)


class MLPRegressor(Compiled, neural_network.MLPRegressor):       # type: ignore[misc]
    __doc__ = f"""scikit-learn's MLPRegressor, trained by compiled code; its arguments, and three more.{DOC}"""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPRegressor._parameter_constraints, **CONSTRAINTS
    }

    def __init__(
        self, loss: str = "squared_error", hidden_layer_sizes: Any = (100,), activation: str = "relu", *,
        solver: str = "adam", alpha: float = 0.0001, batch_size: Any = "auto", learning_rate: str = "constant",
        learning_rate_init: float = 0.001, power_t: float = 0.5, max_iter: int = 200, shuffle: bool = True,
        random_state: Any = None, tol: float = 1e-4, verbose: Any = False, warm_start: bool = False,
        momentum: float = 0.9, nesterovs_momentum: bool = True, early_stopping: bool = False,
        validation_fraction: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8,
        n_iter_no_change: float = 10, max_fun: int = 15000, reset_optimizer: bool = True,
        callbacks: Callbacks | None = None, checkpoint: Path | None = None,
    ) -> None:
        super().__init__(
            loss, hidden_layer_sizes, activation, solver=solver, alpha=alpha, batch_size=batch_size,
            learning_rate=learning_rate, learning_rate_init=learning_rate_init, power_t=power_t, max_iter=max_iter,
            shuffle=shuffle, random_state=random_state, tol=tol, verbose=verbose, warm_start=warm_start,
            momentum=momentum, nesterovs_momentum=nesterovs_momentum, early_stopping=early_stopping,
            validation_fraction=validation_fraction, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon,
            n_iter_no_change=n_iter_no_change, max_fun=max_fun,
        )
        self.reset_optimizer, self.callbacks, self.checkpoint = reset_optimizer, callbacks, checkpoint
