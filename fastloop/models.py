"""Models: configuration, initial weights, and the wiring to their compiled passes.  No training logic lives here."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np

from . import _core, arrays, checkpoint, extras
from ._check import choice, names_nearest, number, whole
from ._check import dtype as checked_dtype
from ._check import ids as check_ids
from ._check import seed as checked_seed
from .data import hold_out, pack
from .errors import DataError
from .params import Params
from .tokenizer import as_docs, as_tokenizer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike
    from typing_extensions import Self

    from ._types import Activation, Array, Floats, Ints, Loss, Number, Path, Shape, Tokenizer, Values, Whole

PREDICTIONS = 1024      # whose logits are computed at a time
SIDE_BY_SIDE = 8        # documents generated at a time, a panel of float64; not more in float32: the draws depend on it
MOST_STD = {8: 1e300, 4: 1e37}      # by the bytes of a value; with more, a draw could be infinite


class Model:
    """What every model offers: `params` and `grads` (Params), `dtype`, `config`, and its passes.  To be subclassed.

    shapes: dict of name -> shape.  Every tensor begins normally distributed with standard deviation init_std, drawn in
    the order of memory from numpy.random.default_rng(seed), in float64 whatever the dtype; factors: what the draw of
    some tensors is multiplied by, where 0 makes them zeros.

    dtype: float64 or float32, of parameters, gradients, moments and whatever the model computes; losses and norms are
    float64.

    A model of your own is a subclass with an __init__ that calls super().__init__(shapes, ...), and two methods:

    forward(X, y, weights) returns the loss of these rows, one number: the sum of weights times the losses of the rows.
    X and y hold the rows of a batch of what fit, batch or evaluate was given, in arrays that the model may keep: X an
    array, or a tuple of arrays where X was one; y an array, or None where none was given.  Only the first axis counts,
    as rows; dtypes and other axes are as they were given.  weights: (rows,) float64, which may not be written to; they
    add up to 1 over the rows of a step, and of each batch that evaluate makes.
    backward() adds the gradient of the loss that forward returned last to self.grads, of which each tensor is an array:
    self.grads["w"][...] += g.

    An exception in either ends the step, with the parameters as they were, and passes on to the caller.  The trainer
    calls both from one thread at a time.  config_names: names of attributes that say how the model was made, which a
    checkpoint keeps and Trainer.load compares; they cannot be changed after __init__.
    """

    config_names: ClassVar[tuple[str, ...]] = ()    # the arguments that say the model's shape, which are attributes too
    classes: Any = None     # the labels of the outputs, where a model gives classes and they are known
    dtype: np.dtype[Any]
    params: Params
    grads: Params
    gate: _core.variant.Gate

    def __init__(
        self, shapes: Mapping[str, Shape], seed: Whole | None = 42, init_std: Number = 0.08,
        dtype: DTypeLike = np.float64, factors: Mapping[str, float] | None = None,
    ) -> None:
        dtype, shapes = checked_dtype(dtype), _shapes(shapes)
        seed, init_std = checked_seed(seed), number("init_std", init_std, 0.0, MOST_STD[dtype.itemsize])
        self.dtype = dtype
        self.params = Params(shapes, dtype)
        self.grads = Params(shapes, dtype)
        self._wire()
        drawn = self.params if dtype == np.float64 else Params(shapes)
        drawn.flat[:] = np.random.default_rng(seed).normal(0.0, init_std, self.num_params)
        for name, factor in (factors or {}).items():
            if factor:
                drawn[name][...] *= factor
            else:
                drawn[name][...] = 0.0
        if drawn is not self.params:
            _round(drawn, self.params)

    def __setattr__(self, name: str, value: object) -> None:
        # Compiled passes and optimisers point into these buffers, and have copies of the sizes; they would not follow.
        if name in ("params", "grads") and name in vars(self):
            raise AttributeError(f"{name} stays the model's own: write into it, model.{name}.flat[:] = values")
        if name in ("dtype", *self.config_names) and name in vars(self):
            raise AttributeError(f"{name} is fixed when a model is made; make a new one")
        if name in ("config", "num_params"):
            raise AttributeError(f"{name} is what every model of fastloop says of itself; give yours another name")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        self.gate.check_whole("copying or pickling a model")
        return {name: value for name, value in vars(self).items() if name not in ("gate", "_spare")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._wire()

    def _wire(self) -> None:
        self.gate = _core.variant.Gate()
        self._spare: list[Any] = []     # steppers that no call is using

    def __copy__(self) -> Self:
        return copy.deepcopy(self)      # a shallow copy would train the original

    @property
    def num_params(self) -> int:
        return self.params.flat.size

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make a model of the same shape; dtype is one of them where it is not float64."""
        config = {name: getattr(self, name) for name in self.config_names}
        return config if self.dtype == np.float64 else {**config, "dtype": self.dtype.name}

    def astype(self, dtype: DTypeLike) -> Self:
        """A new model of the same weights in that dtype, float64 or float32, its gradients zero; `classes` and what
        else the model has are copied.

        Down to float32 each weight is rounded to the nearest.  Raises ValueError, with the place, for a weight that is
        more than the largest float32; what is not finite stays so.
        """
        dtype = checked_dtype(dtype)
        state = self.__getstate__()
        params, grads = (Params(self.params.shapes, dtype) for _ in range(2))
        _round(self.params, params)
        model = object.__new__(type(self))
        others = {name: value for name, value in state.items() if name not in ("params", "grads", "dtype")}
        model.__setstate__({**copy.deepcopy(others), "dtype": dtype, "params": params, "grads": grads})
        return model

    def make_core(self) -> _core.variant.Model:
        """New passes over the buffers: compiled, with a workspace of their own; or those of the user's subclass."""
        needed = {"forward": "(X, y, weights), which returns the loss", "backward": "(), which adds to grads"}
        for name, what in needed.items():
            if not callable(getattr(self, name, None)):
                raise TypeError(f"{type(self).__name__} has no method {name}{what}: a model of your own needs it")
        own: Any = self
        kernels = _core.engine(self.dtype).kernels
        return _core.variant.OwnModel(kernels, self.params.flat, self.grads.flat, own.forward, own.backward, self.gate)

    def make_data(
        self, docs: Any, y: ArrayLike | None = None, tokenizer: Tokenizer | None = None
    ) -> tuple[_core.variant.Data, int]:
        """The compiled data of docs (or arrays), and how many documents were cut."""
        X, y = docs if y is None and arrays.is_pair(docs) else (docs, y)
        return arrays.pack_rows(X, y), 0

    def hold_out(self, data: Any, y: ArrayLike | None, share: float, seed: int) -> tuple[tuple[Any, Any], Any]:
        """(data, y) to train on and data for validation: a share set aside, at random or, of a text, its end."""
        X, y = data if y is None and arrays.is_pair(data) else (data, y)
        return arrays.hold_out(X, y, share, seed)

    def make_batch(self, data: Any) -> _core.variant.Batch:
        """An empty batch of that data."""
        return _core.variant.AnyBatch(data)

    def save_safetensors(self, path: Path, tokenizer: Tokenizer | None = None) -> None:
        """Write the parameters alone, under their names and in their dtype (extra: safetensors), whole or not at all.

        The file's metadata are the model's class and config and, where it is given, the tokenizer, as JSON.
        """
        numpy = safetensors()
        description = {name: str(value) for name, value in self.config.items()}
        metadata = {"model": type(self).__name__, **description}
        if tokenizer is not None:
            metadata["tokenizer"] = json.dumps(tokenizer.to_dict())
        checkpoint.atomically(path, numpy.save(dict(self.params), metadata=metadata))

    def load_safetensors(self, path: Path) -> None:
        """Take the parameters from a file that holds tensors of these names and shapes, and no others.

        float16 is widened, float64 and float32 are not converted: a file of the other dtype is read into a model of
        that dtype, and `astype` makes it one of this.  Raises ValueError before any change where the file does not fit
        or is damaged, and TypeError for another dtype (extra as above).
        """
        with extras.open_safetensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}     # noqa: SIM118 -- it is no dict
        if set(tensors) != set(self.params):
            odd = ", ".join(sorted(set(tensors) ^ set(self.params)))
            raise ValueError(f"{path}: the tensors of the file and of {self!r} differ: {odd}")
        for name, value in tensors.items():
            if value.shape != self.params[name].shape or value.dtype.kind != "f":
                expected = f"{self.params[name].shape} of floats"
                raise ValueError(f"{path}: {name} has shape {value.shape} of {value.dtype}, expected {expected}")
            if value.dtype.itemsize > 2 and value.dtype != self.dtype:
                raise TypeError(
                    f"{path}: {name} is {value.dtype}, the model {self.dtype}: read it into a model made with dtype="
                    f"'{value.dtype}', whose astype('{self.dtype}') is then one of this dtype"
                )
        for name, value in tensors.items():
            self.params[name] = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config.items())})"


def _shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of a model's tensors by name, refused where they are not that."""
    if not isinstance(shapes, Mapping) or not shapes:
        raise TypeError(f"shapes = {shapes!r:.80} must be a dict of name -> shape, such as {{'w': (3, 2), 'b': (2,)}}")
    checked: dict[str, Shape] = {}
    for name, shape in shapes.items():
        if not isinstance(name, str) or not isinstance(shape, tuple):
            raise TypeError(f"shapes[{name!r}] = {shape!r:.80}: expected a str and a tuple of sizes, such as (3, 2)")
        checked[name] = tuple(whole(f"shapes[{name!r}][{i}]", n, 0) for i, n in enumerate(shape))
    return checked


@np.errstate(over="ignore", under="ignore")
def _round(values: Params, into: Params) -> None:
    """Write values into another dtype, each rounded to the nearest; ValueError for one that becomes infinite."""
    into.flat[:] = values.flat
    lost = np.isinf(into.flat) & np.isfinite(values.flat)
    if lost.any():
        for name, tensor in values.items():
            for place in np.argwhere(np.isfinite(tensor) & np.isinf(into[name])):
                raise ValueError(
                    f"{name}[{', '.join(map(str, place))}] = {tensor[tuple(place)]} is more than a "
                    f"{into.flat.dtype} can be"
                )


def safetensors() -> Any:
    """The module safetensors.numpy, or an ImportError that says how to get it."""
    return extras.load("safetensors.numpy", "safetensors", "a safetensors file")


class LanguageModel(Model):
    """A model of the next token, trained on documents through a tokenizer."""

    vocab_size: int
    n_embd: int
    block_size: int

    def make_data(
        self, docs: Any, y: ArrayLike | None = None, tokenizer: Tokenizer | None = None
    ) -> tuple[_core.variant.TokenData, int]:
        if y is not None:
            raise TypeError(f"{type(self).__name__} learns from documents alone; y is for models over arrays")
        if tokenizer is None:
            raise TypeError(f"{type(self).__name__} reads documents: give its Trainer a tokenizer")
        if as_tokenizer(tokenizer).vocab_size > self.vocab_size:
            raise DataError(f"the tokenizer has {tokenizer.vocab_size} ids, the model only {self.vocab_size}")
        return pack(docs, tokenizer, self.block_size)

    def hold_out(self, docs: Any, y: ArrayLike | None, share: float, seed: int) -> tuple[tuple[Any, Any], Any]:
        docs, held = hold_out(docs, share, seed)
        return (docs, y), held

    def make_batch(self, data: Any) -> _core.variant.TokenBatch:
        return _core.variant.TokenBatch(data)

    @classmethod
    def from_safetensors(cls, path: Path) -> Self:
        """The model that save_safetensors wrote, with the sizes and dtype in the file's metadata (extra: safetensors).

        CharTokenizer.from_safetensors(path) brings its tokenizer.  Raises ValueError where the file holds another model
        or tensors that do not fit its metadata.
        """
        with extras.open_safetensors(path) as file:
            metadata, names = file.metadata() or {}, file.keys()
            shapes = {name: file.get_slice(name).get_shape() for name in names}
        if metadata.get("model") != cls.__name__:
            raise ValueError(f"{path}: holds {metadata.get('model', 'no model of fastloop')}, expected {cls.__name__}")
        try:
            sizes = {name: int(metadata[name]) for name in cls.config_names}
            dtype = checked_dtype(metadata.get("dtype", "float64"))
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: its metadata do not give the sizes of a {cls.__name__} ({error!r})") from error
        # Before memory is allocated, the sizes of the metadata must be those of the tensors.
        V, D, T = sizes["vocab_size"], sizes["n_embd"], sizes["block_size"]
        found = shapes.get("wte"), shapes.get("wpe"), len(shapes)
        if found[:2] != ([V, D], [T, D]) or sizes.get("n_layer", 0) > found[2]:
            raise ValueError(f"{path}: wte {found[0]} and wpe {found[1]} of {found[2]} tensors do not fit {sizes}")
        make: Any = cls     # a subclass, which has these sizes
        model: Self = make(**sizes, init_std=0.0, **({} if dtype == np.float64 else {"dtype": dtype}))
        model.load_safetensors(path)
        return model

    @overload
    def logits(self, ids: ArrayLike, docs: None = None) -> Values: ...
    @overload
    def logits(self, ids: Tokenizer, docs: Iterable[str]) -> list[Values]: ...
    def logits(self, ids: Any, docs: Iterable[str] | None = None) -> Values | list[Values]:
        """The score of every token as the next one, before the softmax.

        logits(ids): ids (t,), ints in [0, vocab_size), 1 to block_size of them (a document begins with tokenizer.bos).
        Returns (t, vocab_size) of the model's dtype; row i scores what follows ids[i], the model having seen
        ids[: i + 1].
        logits(tokenizer, docs): docs, a list of str.  Returns a list with an array for each, len(doc) + 1 rows, or
        block_size where that is less; row 0 scores what begins the document, row i what follows its first i characters.

        Raises TypeError, ValueError (no or too many ids) and IndexError (an id out of range), DataError as fit does.
        """
        if docs is None:
            (logits,) = self._logits_of(self._sequence(ids))
            return logits
        data, _ = self.make_data(as_docs(docs), None, ids)
        return self._logits_of(data)

    @overload
    def probabilities(self, ids: ArrayLike, docs: None = None) -> Values: ...
    @overload
    def probabilities(self, ids: Tokenizer, docs: Iterable[str]) -> list[Values]: ...
    def probabilities(self, ids: Any, docs: Iterable[str] | None = None) -> Values | list[Values]:
        """The probability of every token as the next one: the softmax of `logits`, for the same arguments.

        Raises FloatingPointError where the logits are not finite, as those of a model that diverged.
        """
        return softmax(self.logits(ids)) if docs is None else [softmax(rows) for rows in self.logits(ids, docs)]

    def _sequence(self, ids: ArrayLike) -> _core.variant.TokenData:
        """ids, one sequence, as compiled data of one document."""
        array = np.asarray(ids)
        if array.dtype.kind not in "iu":
            hint = "; for documents pass (tokenizer, docs)" if array.dtype.kind in "UO" else ""
            raise TypeError(f"ids must be ints, got {ids!r:.80}{hint}")
        if array.ndim != 1 or not 1 <= len(array) <= self.block_size:
            raise ValueError(f"ids has shape {array.shape}, expected (t,) with t from 1 to {self.block_size}")
        check_ids("ids", array, self.vocab_size)
        # The pass needs a target after the last token; which one makes no difference to the logits.
        return _core.variant.TokenData(np.append(array, 0).astype(np.int32), np.array([0, len(array)]), self.block_size)

    def _logits_of(self, data: _core.variant.TokenData) -> list[Values]:
        """A list of logits, (predictions, vocab_size) for each example."""
        core: Any = self.make_core()
        batch, every = self.make_batch(data), []
        size = max(1, PREDICTIONS // data.longest)
        for first in range(0, data.n_examples, size):
            examples = np.arange(first, min(first + size, data.n_examples))
            batch.take(examples, 1.0)
            rows = np.empty((batch.n_predictions, self.vocab_size), self.dtype)
            core.logits_of(batch, rows)
            ends = np.cumsum([data.predictions(examples[i : i + 1]) for i in range(len(examples))])
            every += np.split(rows, ends[:-1])
        return every

    def generate(
        self, tokenizer: Tokenizer, n: Whole = 1, temperature: Number = 1.0, seed: Whole | None = None, *,
        prompt: str = "", top_k: Whole | None = None, top_p: Number | None = None, length: Whole | None = None,
    ) -> list[str]:
        """n documents sampled token by token, as a list of str; each ends at BOS or after block_size tokens.

        temperature: divides the logits; 0 takes the most probable token each time.  top_k: sample from the k most
        probable only.  top_p: from the fewest that together have at least this probability (Holtzman et al. 2020).
        prompt: how every document begins.  seed: of a random stream of its own (None: a new one each call); the first
        documents are the same whatever n.

        length: for a model trained on one text, how many tokens to add to the prompt (without one, to a line end).  No
        BOS is drawn then, and when the window is full its second half becomes the context that goes on.

        Raises FloatingPointError where the logits are not finite, as those of a model that diverged.
        """
        n, temperature, seed = whole("n", n, 0), number("temperature", temperature, 0.0), checked_seed(seed)
        if top_k is not None:
            top_k = whole("top_k", top_k)
        top_p = None if top_p is None else number("top_p", top_p)
        if top_p is not None and not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p = {top_p} is outside (0, 1]")
        if as_tokenizer(tokenizer).vocab_size > self.vocab_size:
            raise DataError(f"the tokenizer has {tokenizer.vocab_size} ids, the model only {self.vocab_size}")
        known = tokenizer.encode(prompt)
        if length is None:
            begin, count = [tokenizer.bos, *known], self.block_size - len(known)
            if count < 1:
                raise ValueError(f"a prompt of {len(known)} tokens leaves no room in block_size = {self.block_size}")
        else:
            begin = known or tokenizer.encode("\n" if "\n" in tokenizer.chars else tokenizer.chars[0])
            count = whole("length", length)
        rng = np.random.default_rng(seed)
        try:
            next_logits = self._spare.pop()     # atomic, so no two threads get the same one
        except IndexError:
            next_logits = self.stepper()
        texts = []
        for first in range(0, n, SIDE_BY_SIDE):
            # Row by row: what a document draws depends neither on its neighbours nor on n.
            u = rng.random((min(SIDE_BY_SIDE, n - first), count))
            ids = self._continue(next_logits, begin, u, tokenizer, length is not None, temperature, top_k, top_p)
            texts += [prompt + tokenizer.decode(row) for row in ids]
        self._spare.append(next_logits)
        return texts

    def _continue(
        self, next_logits: Callable[[Ints, int], Values], begin: list[int], u: Floats, tokenizer: Tokenizer,
        stream: bool, temperature: float, top_k: int | None, top_p: float | None,
    ) -> list[Ints]:
        """The ids that the uniform numbers u (B, count) choose after `begin`, for each of B documents: all of them for
        a stream, else those before BOS."""
        B, count = u.shape
        drawn = np.tile(np.array(begin, np.int64)[:, None], (1, B))
        drawn = np.concatenate([drawn, np.empty((count, B), np.int64)])
        first = max(0, len(begin) - self.block_size)    # index of the token at position 0
        read = first                                    # how many tokens the model has seen
        ends = np.full(B, count)
        for k in range(count):
            at = len(begin) + k
            if at - first > self.block_size:
                first = read = at - max(1, self.block_size // 2)
            for i in range(read, at):
                logits = next_logits(drawn[i], i - first)
            read = at
            logits = logits[:, : tokenizer.vocab_size]
            if stream:
                logits[:, tokenizer.bos] = -np.inf
            drawn[at] = sample(logits, u[:, k], temperature, top_k, top_p)
            if not stream:
                ends[(drawn[at] == tokenizer.bos) & (ends == count)] = k
                if (ends < count).all():
                    break
        return [drawn[len(begin) : len(begin) + end, b] for b, end in enumerate(ends)]

    def stepper(self) -> Callable[[Ints, int], Values]:
        """A function next_logits(tokens, position), with its own state, such as a cache.

        It returns the logits (B, V) after `tokens` (B,), one of each of up to SIDE_BY_SIDE documents, all at
        `position`; they are valid until its next call.  It is called for positions 0, 1, ... in turn.  A row is bitwise
        the same whatever the others are.
        """
        core: Any = self.make_core()    # of its own: it keeps the keys and values of the positions before
        logits = np.empty((SIDE_BY_SIDE, self.vocab_size), self.dtype)

        def next_logits(tokens: Ints, position: int) -> Values:
            core.generate_step(tokens, position, logits[: len(tokens)])
            return logits[: len(tokens)]

        return next_logits


# Underflow to 0 and overflow to -inf are intended here, whatever np.seterr says.
@np.errstate(over="ignore", under="ignore")
def softmax(logits: Values) -> Values:
    """The softmax of logits (N, classes), row by row."""
    largest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise FloatingPointError("the model's logits are not finite: there are no probabilities to give")
    e = np.exp(logits - largest)
    return e / e.sum(axis=1, keepdims=True)


@np.errstate(over="ignore", under="ignore")
def sample(
    logits: Values, u: Floats, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Ints:
    """The ids (B,) that numbers u (B,), uniform in [0, 1), choose from logits (B, V); see LanguageModel.generate."""
    logits = logits.astype(np.float64, copy=False)      # the sums below need its digits
    largest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise FloatingPointError("the model's logits are not finite: there is nothing to sample from")
    if temperature == 0.0:
        return logits.argmax(axis=1)
    p = np.exp((logits - largest) / temperature)        # at the smallest temperatures -inf, whose exp is 0
    if top_k is None and top_p is None:
        return sample_from(p, u)
    order = np.argsort(-p, axis=1, kind="stable")[:, :top_k]
    kept = np.take_along_axis(p, order, axis=1)
    if top_p is not None:
        before = np.cumsum(kept, axis=1) - kept         # the share of those that are more probable
        kept[before >= top_p * p.sum(axis=1, keepdims=True)] = 0.0
    return np.take_along_axis(order, sample_from(kept, u)[:, None], axis=1)[:, 0]


def sample_from(weights: Floats, u: Floats) -> Ints:
    """For each row of weights (B, V) the first index whose cumulative sum exceeds u (B,) times the row's sum."""
    cumulative = weights.cumsum(axis=1)
    return np.minimum((cumulative <= u[:, None] * cumulative[:, -1:]).sum(axis=1), weights.shape[1] - 1)


class BigramLM(LanguageModel):
    """Logits of the next token from the present one and its position: lm_head (wte[token] + wpe[position]).

    vocab_size V, n_embd D, block_size T: the tensors are wte (V, D), wpe (T, D) and lm_head (V, D).  seed and init_std:
    of the initial weights, normal with that standard deviation.
    """

    config_names: ClassVar[tuple[str, ...]] = ("vocab_size", "n_embd", "block_size")
    vocab_size: int
    n_embd: int
    block_size: int

    @names_nearest
    def __init__(
        self, vocab_size: Whole, n_embd: Whole = 16, block_size: Whole = 8, seed: Whole | None = 42,
        init_std: Number = 0.08, dtype: DTypeLike = "float64",
    ) -> None:
        self.vocab_size = V = whole("vocab_size", vocab_size)
        self.n_embd = D = whole("n_embd", n_embd)
        self.block_size = T = whole("block_size", block_size)
        super().__init__(_core.variant.Bigram.tensors(V, D, T), seed, init_std, dtype)

    def make_core(self) -> _core.variant.Bigram:
        engine = _core.engine(self.dtype)
        return engine.Bigram(self.params.flat, self.grads.flat, self.vocab_size, self.n_embd, self.block_size)


class GPT(LanguageModel):
    """microgpt's transformer: RMSNorm without scale, causal multi-head attention, ReLU MLP of width 4 D, no biases.

    vocab_size V, n_embd D (a multiple of n_head), block_size T: the tensors are wte (V, D), wpe (T, D), then for each
    layer attn_wq, attn_wk, attn_wv, attn_wo (D, D), mlp_fc1 (4 D, D) and mlp_fc2 (D, 4 D), last lm_head (V, D), each
    (out, in).  seed and init_std: of the initial weights, normal with that standard deviation.
    """

    config_names: ClassVar[tuple[str, ...]] = ("vocab_size", "n_embd", "n_head", "n_layer", "block_size")
    vocab_size: int
    n_embd: int
    n_head: int
    n_layer: int
    block_size: int

    @names_nearest
    def __init__(
        self, vocab_size: Whole, n_embd: Whole = 16, n_head: Whole = 4, n_layer: Whole = 1, block_size: Whole = 16,
        seed: Whole | None = 42, init_std: Number = 0.08, dtype: DTypeLike = "float64",
    ) -> None:
        self.vocab_size = V = whole("vocab_size", vocab_size)
        self.n_embd = D = whole("n_embd", n_embd)
        self.n_head = whole("n_head", n_head)
        self.n_layer = whole("n_layer", n_layer)
        self.block_size = T = whole("block_size", block_size)
        if D % self.n_head:
            raise ValueError(f"n_embd = {D} must be a multiple of n_head = {self.n_head}")
        super().__init__(_core.variant.GPT.tensors(V, D, T, self.n_layer, self.n_head), seed, init_std, dtype)

    def make_core(self) -> _core.variant.GPT:
        return _core.engine(self.dtype).GPT(
            self.params.flat, self.grads.flat,
            self.vocab_size, self.n_embd, self.block_size, self.n_layer, self.n_head,
        )


class MLP(Model):
    """A network of linear layers over plain arrays, with an activation between them.

        a = X;  for each layer:  a = activation(a weight^T + bias), the last one without the activation

    widths: the number of inputs, the width of each hidden layer, the number of outputs (or classes): [2, 16, 16, 1].
    activation: "relu", "tanh", "logistic" (1 / (1 + exp(-a))) or "identity".  loss: "mse", the mean of (a - y)^2 over
    rows and outputs, or "cross_entropy", the mean of -log softmax(a)[y] over rows, in nats.  seed: of the initial
    weights.  init_std: their standard deviation; None takes sqrt(2 / fan_in) before a ReLU (He et al. 2015) and
    sqrt(1 / fan_in) elsewhere (LeCun et al. 1998).
    Biases begin at 0.  The tensors are layer0.weight (out, in), layer0.bias (out,), layer1.weight, ...

    Trainer takes X (N, in) and y: (N, out), or labels (N,) with cross-entropy.  Where a width is 1, (N,) serves as
    well.  They are copied, and integers, bool and floats become the model's dtype.  Values that are not finite, or not
    in that dtype, are refused, and the message names the place.

    classes: with cross-entropy, the labels in the order of the outputs, an array (n_classes,), which predict returns.
    None until the first y, which sets them: integers are ids from 0 on; str and float labels are sorted, and that y
    must hold all of them.  For other labels or another order set model.classes = ["no", "yes"] before; None forgets
    them.
    """

    config_names: ClassVar[tuple[str, ...]] = ("widths", "activation", "loss")
    n_evaluate: ClassVar[int] = 1024    # rows predicted at a time
    widths: list[int]
    activation: Activation
    loss: Loss

    @names_nearest
    def __init__(
        self, widths: Iterable[Whole], activation: Activation = "relu", loss: Loss = "mse", seed: Whole | None = 42,
        init_std: Number | None = None, dtype: DTypeLike = "float64",
    ) -> None:
        if not hasattr(widths, "__iter__"):
            raise TypeError(f"widths = {widths!r}: expected a list, such as [2, 16, 1]")
        self.widths = [whole(f"widths[{i}]", width) for i, width in enumerate(widths)]
        if len(self.widths) < 2:
            raise ValueError(f"widths = {self.widths}: at least two are needed, the inputs and the outputs")
        self.activation = choice("activation", activation, *_core.variant.ACTIVATIONS)
        self.loss = choice("loss", loss, "mse", "cross_entropy")
        if loss == "cross_entropy" and self.widths[-1] < 2:
            raise ValueError(f"widths[-1] = {self.widths[-1]}: cross-entropy needs at least 2 classes")
        self._classes: Array | None = None
        last = len(self.widths) - 2
        factors = {f"layer{i}.bias": 0.0 for i in range(last + 1)}
        if init_std is None:
            init_std = 1.0
            for i in range(last + 1):
                gain = 2.0 if i < last and activation == "relu" else 1.0
                factors[f"layer{i}.weight"] = np.sqrt(gain / self.widths[i])
        super().__init__(_core.variant.MLP.tensors(self.widths), seed, init_std, dtype, factors)

    def make_core(self) -> _core.variant.MLP:
        return _core.engine(self.dtype).MLP(
            self.params.flat, self.grads.flat,
            self.widths, _core.variant.ACTIVATIONS.index(self.activation), _core.variant.LOSSES.index(self.loss),
        )

    @property
    def classes(self) -> Array | None:
        return self._classes

    @classes.setter
    def classes(self, labels: ArrayLike | None) -> None:
        if labels is not None:
            if self.loss != "cross_entropy":
                raise TypeError(f"{type(self).__name__} with loss={self.loss!r} has no classes")
            labels = arrays.as_classes(labels, self.widths[-1])
        self._classes = labels

    def make_data(
        self, X: Any, y: ArrayLike | None = None, tokenizer: Tokenizer | None = None
    ) -> tuple[_core.variant.ArrayData, int]:
        if y is None and arrays.is_pair(X):
            X, y = X
        if y is None:
            raise TypeError(f"{type(self).__name__} learns from X and y: y is missing (or pass both as (X, y))")
        cross_entropy = self.loss == "cross_entropy"
        data, self._classes = arrays.pack_arrays(
            X, y, self.widths[0], self.widths[-1], cross_entropy, self._classes, self.dtype
        )
        return data, 0

    def make_batch(self, data: Any) -> _core.variant.ArrayBatch:
        return _core.variant.ArrayBatch(data)

    def outputs(self, X: ArrayLike) -> Values:
        """What the last layer gives for each row of X, (N, out): values, or logits with cross-entropy."""
        data, _ = arrays.pack_arrays(X, None, self.widths[0], self.widths[-1], False, dtype=self.dtype)
        core, batch = self.make_core(), self.make_batch(data)
        out = np.empty((data.n_examples, self.widths[-1]), self.dtype)
        for first in range(0, len(out), self.n_evaluate):
            block = out[first : first + self.n_evaluate]
            batch.take(np.arange(first, first + len(block)), 1.0)
            core.predict(batch, block)
        return out

    def predict(self, X: ArrayLike) -> Array:
        """The outputs for each row of X: (N,) where the model gives one value, (N, out) where it gives more; with
        cross-entropy the label of the most probable class, (N,): its id where `classes` is None."""
        out = self.outputs(X)
        if self.loss == "cross_entropy":
            ids = out.argmax(axis=1)
            return ids if self._classes is None else self._classes[ids]
        return out[:, 0] if self.widths[-1] == 1 else out

    def predict_proba(self, X: ArrayLike) -> Values:
        """The probability of each class for each row of X, (N, classes) in the order of `classes`: the softmax of the
        outputs."""
        if self.loss != "cross_entropy":
            raise TypeError(f"{type(self).__name__} with loss={self.loss!r} gives values, not probabilities")
        return softmax(self.outputs(X))


class LinearRegression(MLP):
    """y = X weight^T + bias under the mean squared error: an MLP without a hidden layer.

    n_in, n_out: columns of X and of y.  seed and init_std: of the initial weights, 0 unless asked for.
    """

    config_names: ClassVar[tuple[str, ...]] = ("n_in", "n_out")
    n_in: int
    n_out: int

    @names_nearest
    def __init__(
        self, n_in: Whole, n_out: Whole = 1, seed: Whole | None = 42, init_std: Number = 0.0,
        dtype: DTypeLike = "float64",
    ) -> None:
        self.n_in, self.n_out = whole("n_in", n_in), whole("n_out", n_out)
        super().__init__([self.n_in, self.n_out], loss="mse", seed=seed, init_std=init_std, dtype=dtype)


class SoftmaxRegression(MLP):
    """Class probabilities softmax(X weight^T + bias) under cross-entropy: an MLP without a hidden layer.

    n_in: columns of X; y holds class ids in [0, n_classes), or other labels, see MLP.  seed and init_std: of the
    initial weights, 0 unless asked for.
    """

    config_names: ClassVar[tuple[str, ...]] = ("n_in", "n_classes")
    n_in: int
    n_classes: int

    @names_nearest
    def __init__(
        self, n_in: Whole, n_classes: Whole, seed: Whole | None = 42, init_std: Number = 0.0,
        dtype: DTypeLike = "float64",
    ) -> None:
        self.n_in, self.n_classes = whole("n_in", n_in), whole("n_classes", n_classes)
        super().__init__([self.n_in, self.n_classes], loss="cross_entropy", seed=seed, init_std=init_std, dtype=dtype)


class FunctionModel(Model):
    """A model that is a function: value_and_grad(params, X, y, weights) -> (loss, gradients).

    params: dict of name -> array, the initial values, which are copied; all float64 or all float32, which is the
    model's dtype.  value_and_grad gets a dict of the parameters as NumPy arrays, which it must not write to, and a
    batch as Model.forward does; it returns the loss, one number, and a dict of name -> gradient, each an array of its
    parameter's shape and dtype, which NumPy can read.  A function that jax.value_and_grad makes is one, after
    jax.config.update("jax_enable_x64", True) where params are float64.

    Raises TypeError or ValueError, with the name, for gradients that do not fit.
    """

    @names_nearest
    def __init__(
        self, params: Mapping[str, ArrayLike],
        value_and_grad: Callable[[dict[str, Any], Any, Any, Values], tuple[Any, Mapping[str, Any]]],
    ) -> None:
        if not callable(value_and_grad):
            raise TypeError(f"value_and_grad = {value_and_grad!r:.80} must be a function")
        if not isinstance(params, Mapping):
            raise TypeError(f"params = {params!r:.80} must be a dict of name -> array")
        given = {name: np.asarray(value) for name, value in params.items()}
        dtypes = {name: array.dtype for name, array in given.items()}
        if len(set(dtypes.values())) > 1:
            told = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
            raise TypeError(f"the parameters must be of one dtype, float64 or float32, got {told}")
        super().__init__(
            {name: array.shape for name, array in given.items()}, None, 0.0, next(iter(dtypes.values()), np.float64)
        )
        for name, array in given.items():
            self.params[name] = array
        self.value_and_grad = value_and_grad

    def _wire(self) -> None:
        super()._wire()
        self._tensors: dict[str, Values] = dict(self.params)
        self._gradients: Mapping[str, Any] = {}
        self._sums = [(name, grad, grad.shape) for name, grad in self.grads.items()]

    def __getstate__(self) -> dict[str, Any]:
        own = ("_tensors", "_gradients", "_sums")
        return {name: value for name, value in super().__getstate__().items() if name not in own}

    def forward(self, X: Any, y: Any, weights: Values) -> Any:
        """The loss of the function; its gradients are kept for backward."""
        returned = self.value_and_grad(self._tensors.copy(), X, y, weights)
        if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], Mapping):
            raise TypeError(f"value_and_grad returned {returned!r:.80}, expected a tuple: loss, dict of gradients")
        loss, self._gradients = returned
        return loss

    def backward(self) -> None:
        """Add the function's gradients to `grads`."""
        gradients = self._gradients
        if gradients.keys() != self._tensors.keys():
            raise ValueError(f"value_and_grad gave gradients of {[*gradients]}, the parameters are {[*self._tensors]}")
        for name, total, shape in self._sums:
            gradient = np.asarray(gradients[name])
            if gradient.dtype != self.dtype or gradient.shape != shape:
                raise (ValueError if gradient.dtype == self.dtype else TypeError)(
                    f"the gradient of {name} has shape {gradient.shape} of {gradient.dtype}, the parameter {shape} of "
                    f"{self.dtype}"
                )
            total += gradient


CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (BigramLM, GPT, MLP, LinearRegression, SoftmaxRegression)}
