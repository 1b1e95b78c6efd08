"""The NumPy twin: every kernel, and a whole training step, in plain NumPy.

It is the specification of the compiled kernels, the oracle of their tests and the baseline of the
benchmarks, so it is written as a careful NumPy user would: vectorised, in place, temporaries where they
cost nothing.  It checks nothing; fastloop.kernels has the same signatures with checks.

Sizes: N tokens, D embedding width, V vocabulary, T positions.  The forward functions take complex arrays as
well, all of them complex, so that complex-step derivatives can be had from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ._types import Array

# By the bytes of a value.  Adam's moments below the first number are set to zero: decayed further they would become
# subnormal, and arithmetic on subnormal numbers is tens of times slower.  What is below the second times eps, squared,
# would not show beside it; and with a beta below the third a moment becomes subnormal within 16 steps.
TINY = {8: (1e-290, 1e-20, 0.1), 4: (1e-35, 1e-9, 0.7)}


def embedding_forward(inputs: Array, positions: Array, wte: Array, wpe: Array, x: Array) -> None:
    """x[n] = wte[inputs[n]] + wpe[positions[n]].

    inputs, positions : (N,) int64; wte : (V, D); wpe : (T, D).  x : (N, D), overwritten.
    """
    wte.take(inputs, axis=0, out=x, mode="clip")    # any other mode would go through a copy of x
    x += wpe.take(positions, axis=0)


def embedding_backward(inputs: Array, positions: Array, dx: Array, dwte: Array, dwpe: Array) -> None:
    """dwte[inputs[n]] += dx[n] and dwpe[positions[n]] += dx[n], for every n.

    inputs, positions : (N,) int64; dx : (N, D).  dwte : (V, D) and dwpe : (T, D), added to.
    """
    _scatter_add(inputs, dx, dwte)
    _scatter_add(positions, dx, dwpe)


def _scatter_add(ids: Array, rows: Array, table: Array) -> None:
    if ids.size > 16 and len(table) <= 256:
        # np.add.at takes the rows one by one; a product with one-hot rows is several times faster here.
        one_hot = np.zeros((len(table), ids.size), rows.dtype)
        one_hot[ids, np.arange(ids.size)] = 1.0
        table += one_hot @ rows
    else:
        np.add.at(table, ids, rows)


def logits_forward(x: Array, lm_head: Array, logits: Array) -> None:
    """logits = x lm_head^T.

    x : (N, D); lm_head : (V, D).  logits : (N, V), overwritten.
    """
    np.matmul(x, lm_head.T, out=logits)


def logits_backward(x: Array, lm_head: Array, dlogits: Array, dx: Array, dlm_head: Array) -> None:
    """dx = dlogits lm_head and dlm_head += dlogits^T x.

    x : (N, D); lm_head : (V, D); dlogits : (N, V).  dx : (N, D), overwritten; dlm_head : (V, D), added to.
    """
    np.matmul(dlogits, lm_head, out=dx)
    dlm_head += dlogits.T @ x


def cross_entropy_forward(logits: Array, targets: Array, losses: Array) -> None:
    """losses[n] = log(sum_v exp(logits[n, v])) - logits[n, targets[n]], in nats.

    logits : (N, V); targets : (N,) int64.  losses : (N,), overwritten.

    With m the largest logit and r the sum of exp(l - m) over the others, the loss is (m - l_target) + log1p(r):
    m keeps exp from overflowing, and log1p keeps a tiny r, the loss of a confident model.  Where a logit
    is NaN or +inf, or all of a row are -inf, the loss is NaN or +inf (and NumPy warns).
    """
    losses[:] = _softmax(logits, targets, np.empty_like(logits))[0]


def cross_entropy_backward(logits: Array, targets: Array, dlogits: Array) -> Any:
    """Return the mean of the losses, and its gradient: dlogits = (softmax(logits) - one_hot(targets)) / N.

    logits : (N, V); targets : (N,) int64.  dlogits : (N, V), overwritten.
    """
    losses, total, others = _softmax(logits, targets, dlogits)
    _softmax_grad(dlogits, targets, 1.0 / len(targets), total, others)
    return losses.mean()


def _softmax(logits: Array, targets: Array, e: Array) -> tuple[Array, Array, Array]:
    """Return losses (N,), and for the gradient sum_v e (N,) and the same without the target's e (N,).

    e : (N, V), overwritten with exp(logits - max).
    """
    n = np.arange(len(targets))
    best = logits.argmax(axis=1)
    top = logits[n, best]
    np.exp(np.subtract(logits, top[:, None], out=e), out=e)
    e[n, best] = 0.0                    # its 1 would swallow the others, where they are tiny
    rest = e.sum(axis=1)
    losses = (top - logits[n, targets]) + np.log1p(rest)
    others = (rest - e[n, targets]) + (best != targets)
    e[n, best] = 1.0
    return losses, 1.0 + rest, others


def _softmax_grad(e: Array, targets: Array, weights: Any, total: Array, others: Array) -> None:
    """e, overwritten with weights (e / total - one_hot(targets)); p - 1 is taken as -others / total."""
    scale = weights / total
    e *= scale[:, None]
    e[np.arange(len(targets)), targets] = -others * scale


def adam_step(
    grad: Array, param: Array, m: Array, v: Array, *, lr: float, beta1: float, beta2: float, eps: float, t: int,
    weight_decay: float = 0.0, decoupled: bool = False, grad_scale: float = 1.0, zero_grad: bool = False,
) -> None:
    """One step of Adam (Kingma and Ba 2015, algorithm 1) over arrays of one shape; t = 1 for the first step.

    With g = grad_scale grad (+ weight_decay param, unless decoupled):

        m = beta1 m + (1 - beta1) g             v = beta2 v + (1 - beta2) g^2
        param = param (1 - lr weight_decay, if decoupled) - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    param, m and v are overwritten; grad is set to zero if zero_grad, else left.  Unlike the paper's, at every
    16th step (at each where a beta is below 0.1) a moment below 1e-290 in size becomes zero; where eps is below 1e-125,
    only one below (1e-20 eps)^2, which a parameter would not show.  float32 has limits of its own (TINY), and a square
    below the limit counts as 0 there.  `decoupled` is AdamW (Loshchilov and Hutter 2019).
    """
    # What a moment keeps and what it takes from the gradient add up to 1 in float32, too.
    beta1, beta2 = float(param.dtype.type(beta1)), float(param.dtype.type(beta2))
    step_size = lr / (1.0 - beta1**t)
    v_scale = 1.0 / math.sqrt(1.0 - beta2**t)
    limit, root, beta = TINY[param.itemsize]
    tiny = min(limit, (root * eps) * (root * eps))
    g = grad
    if grad_scale != 1.0:
        g = g * grad_scale
    if weight_decay and not decoupled:
        g = g + weight_decay * param
    work = np.multiply(g, 1.0 - beta1)
    m *= beta1
    m += work
    np.multiply(g, g, out=work)
    if param.dtype == np.float32:
        np.copyto(work, 0.0, where=np.abs(g) < math.sqrt(tiny / (1.0 - beta2)))
    work *= 1.0 - beta2
    v *= beta2
    v += work
    if t % 16 == 0 or min(beta1, beta2) < beta:
        np.copyto(m, 0.0, where=np.abs(m, out=work) < tiny)
        np.copyto(v, 0.0, where=v < tiny)
    np.sqrt(v, out=work)
    work *= v_scale
    work += eps
    np.divide(m, work, out=work)
    work *= step_size
    if weight_decay and decoupled:
        param *= 1.0 - lr * weight_decay
    param -= work
    if zero_grad:
        grad.fill(0.0)


def grad_norm(grad: Array) -> Any:
    """sqrt(sum grad^2) of an array of any shape; scaled by the largest, so that no square overflows or vanishes."""
    grad = grad.reshape(-1).astype(np.float64, copy=False)
    largest = np.abs(grad).max(initial=0.0)
    if 1e-140 < largest < 1e140:
        return np.sqrt(grad @ grad)
    if largest == 0.0 or not np.isfinite(largest):
        return largest
    scaled = grad / largest
    return largest * np.sqrt(scaled @ scaled)


class _Step:
    """What the training steps below share: the flat buffers, and Adam over them."""

    params: Array
    grads: Array
    m: Array
    v: Array
    t: int

    def __init__(self, params: Array) -> None:
        self.params = params
        self.grads, self.m, self.v = np.zeros((3, params.size), params.dtype)
        self.t = 0

    def zero_grad(self) -> None:
        self.grads.fill(0.0)

    def step(
        self, lr: float, beta1: float = 0.85, beta2: float = 0.99, eps: float = 1e-8, grad_scale: float = 1.0
    ) -> None:
        """One step of Adam on params, from grads."""
        self.t += 1
        adam_step(
            self.grads, self.params, self.m, self.v,
            lr=lr, beta1=beta1, beta2=beta2, eps=eps, t=self.t, grad_scale=grad_scale,
        )


class BigramStep(_Step):
    """A whole training step of the bigram model: logits = (wte[token] + wpe[position]) lm_head^T, and Adam.

    params is the flat buffer ((2 V + T) D,) of wte (V, D), wpe (T, D) and lm_head (V, D), in this order; it is
    not copied, and `step` updates it.  N, the most tokens of a batch, sizes the buffers.

    Attributes: params and grads (flat); wte, wpe, lm_head and dwte, dwpe, dlm_head, views into them; the moments
    m and v; t, the steps taken.
    """

    wte: Array
    wpe: Array
    lm_head: Array
    dwte: Array
    dwpe: Array
    dlm_head: Array

    def __init__(self, params: Array, V: int, D: int, T: int, N: int = 8) -> None:
        super().__init__(params)
        self.wte, self.wpe, self.lm_head = self._tensors(self.params, V, D, T)
        self.dwte, self.dwpe, self.dlm_head = self._tensors(self.grads, V, D, T)
        self._x, self._dx = np.empty((2, N, D), params.dtype)
        self._logits, self._e = np.empty((2, N, V), params.dtype)

    @staticmethod
    def _tensors(flat: Array, V: int, D: int, T: int) -> Any:
        wte, wpe, lm_head = np.split(flat, [V * D, (V + T) * D])
        return wte.reshape(V, D), wpe.reshape(T, D), lm_head.reshape(V, D)

    def forward(self, inputs: Array, targets: Array, positions: Array, weights: Any) -> Any:
        """The loss sum_n weights[n] loss[n] of a batch: four arrays (N,), which backward uses again.

        For the mean over each document's positions, and then over the B documents, a weight is
        1 / (B times the document's length).
        """
        N = len(inputs)
        self._batch = inputs, targets, positions, weights
        embedding_forward(inputs, positions, self.wte, self.wpe, self._x[:N])
        logits_forward(self._x[:N], self.lm_head, self._logits[:N])
        losses, self._total, self._others = _softmax(self._logits[:N], targets, self._e[:N])
        return losses @ weights

    def backward(self) -> None:
        """Add the gradient of the last forward's loss to grads."""
        inputs, targets, positions, weights = self._batch
        N = len(inputs)
        _softmax_grad(self._e[:N], targets, weights, self._total, self._others)
        logits_backward(self._x[:N], self.lm_head, self._e[:N], self._dx[:N], self.dlm_head)
        embedding_backward(inputs, positions, self._dx[:N], self.dwte, self.dwpe)


class GPTStep(_Step):
    """A whole training step of the GPT, and Adam.

        x = rmsnorm(wte[token] + wpe[position])
        in each layer:  x = x + wo attention(rmsnorm(x));  x = x + fc2 relu(fc1 rmsnorm(x))
        logits = lm_head x

    Attention is causal within a document, its scores divided by sqrt(D / n_head); rmsnorm(x) = x / sqrt(mean(x^2) +
    1e-5), without a learned scale; nothing has a bias.

    params is the flat buffer of wte (V, D) and wpe (T, D), for each layer attn_wq, attn_wk, attn_wv, attn_wo (D, D),
    mlp_fc1 (4 D, D) and mlp_fc2 (D, 4 D), and last lm_head (V, D); it is not copied, and `step` updates it.  The
    products run over the tokens of the batch end to end; only attention pads the documents to the longest.

    Attributes: params and grads (flat); the moments m and v; t, the steps taken; logits (N, V) of the last forward.
    """

    wte: Array
    wpe: Array
    lm_head: Array
    dwte: Array
    dwpe: Array
    dlm_head: Array
    layers: list[tuple[Array, ...]]
    dlayers: list[tuple[Array, ...]]
    D: int
    n_head: int
    logits: Array

    def __init__(self, params: Array, V: int, D: int, T: int, n_layer: int = 1, n_head: int = 4) -> None:
        super().__init__(params)
        self.D, self.n_head = D, n_head
        self.wte, self.wpe, self.layers, self.lm_head = self._tensors(self.params, V, D, T, n_layer)
        self.dwte, self.dwpe, self.dlayers, self.dlm_head = self._tensors(self.grads, V, D, T, n_layer)

    @staticmethod
    def _tensors(flat: Array, V: int, D: int, T: int, n_layer: int) -> Any:
        """wte, wpe, a tuple (wq wk wv in one, wo, fc1, fc2) for each layer, lm_head."""
        shapes = [(V, D), (T, D)] + [(3 * D, D), (D, D), (4 * D, D), (D, 4 * D)] * n_layer + [(V, D)]
        pieces = np.split(flat, np.cumsum([rows * columns for rows, columns in shapes])[:-1])
        wte, wpe, *layers, lm_head = [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        return wte, wpe, [layers[i : i + 4] for i in range(0, 4 * n_layer, 4)], lm_head

    def forward(self, inputs: Array, targets: Array, positions: Array, weights: Any) -> Any:
        """The loss sum_n weights[n] loss[n] of a batch: four arrays (N,), which backward uses again.

        A document begins wherever positions is 0.
        """
        self._batch = inputs, targets, positions, weights
        self._pad(positions)
        x = self.wte[inputs]
        x += self.wpe[positions]
        x, s0 = _rmsnorm(x)
        self._embedded = x, s0
        self._saved = []
        for wqkv, wo, fc1, fc2 in self.layers:
            y1, s1 = _rmsnorm(x)
            o, attention = self._attend(y1 @ wqkv.T)
            x = x + o @ wo.T
            y2, s2 = _rmsnorm(x)
            h = y2 @ fc1.T
            h *= h.real > 0.0
            x = x + h @ fc2.T
            self._saved.append((y1, s1, o, attention, y2, s2, h))
        self._x = x
        self.logits = x @ self.lm_head.T
        self._e = np.empty_like(self.logits)
        losses, self._total, self._others = _softmax(self.logits, targets, self._e)
        return losses @ weights

    def backward(self) -> None:
        """Add the gradient of the last forward's loss to grads."""
        inputs, targets, positions, weights = self._batch
        _softmax_grad(self._e, targets, weights, self._total, self._others)
        dx = self._e @ self.lm_head
        self.dlm_head += self._e.T @ self._x
        for i in reversed(range(len(self.layers))):
            wqkv, wo, fc1, fc2 = self.layers[i]
            dwqkv, dwo, dfc1, dfc2 = self.dlayers[i]
            y1, s1, o, attention, y2, s2, h = self._saved[i]
            dh = dx @ fc2
            dh *= h > 0.0
            dfc2 += dx.T @ h
            dfc1 += dh.T @ y2
            dx += _rmsnorm_backward(dh @ fc1, y2, s2)
            dwo += dx.T @ o
            dqkv = self._attend_backward(dx @ wo, attention)
            dwqkv += dqkv.T @ y1
            dx += _rmsnorm_backward(dqkv @ wqkv, y1, s1)
        dx = _rmsnorm_backward(dx, *self._embedded)
        embedding_backward(inputs, positions, dx, self.dwte, self.dwpe)

    def _pad(self, positions: Array) -> None:
        """For attention: (B, L) row numbers that put each document on a line, and which of them are real."""
        first = np.flatnonzero(positions == 0)
        lengths = np.diff(first, append=len(positions))
        t = np.arange(lengths.max())
        self._real = t < lengths[:, None]
        self._rows = np.minimum(first[:, None] + t, len(positions) - 1)
        hidden = np.where(t[:, None] < t, -np.inf, 0.0)
        self._hidden = hidden.astype(self.params.real.dtype, copy=False)     # (L, L), added to the scores of query, key

    def _heads(self, rows: Array) -> Array:
        """rows (N, D) as (B, n_head, L, head size)."""
        B, L = self._rows.shape
        return rows[self._rows].reshape(B, L, self.n_head, -1).transpose(0, 2, 1, 3)

    def _rows_of(self, heads: Array) -> Array:
        """The real rows (N, D) of (B, n_head, L, head size)."""
        return heads.transpose(0, 2, 1, 3)[self._real].reshape(-1, self.D)

    def _attend(self, qkv: Array) -> tuple[Array, tuple[Array, ...]]:
        """o (N, D) of qkv (N, 3 D), and what backward needs.

        A query past its document's end is dropped; a key there is after every real query, so the causal mask hides it.
        """
        q, k, v = (self._heads(part) for part in np.split(qkv, 3, axis=1))
        p = q @ k.swapaxes(2, 3)
        p *= 1.0 / math.sqrt(q.shape[3])
        p += self._hidden
        p -= p.real.max(axis=3, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(axis=3, keepdims=True)
        return self._rows_of(p @ v), (q, k, v, p)

    def _attend_backward(self, do: Array, attention: tuple[Array, ...]) -> Array:
        q, k, v, p = attention
        do = self._heads(do)
        do *= self._real[:, None, :, None]
        dv = p.swapaxes(2, 3) @ do
        ds = do @ v.swapaxes(2, 3)
        ds -= np.einsum("bhts,bhts->bht", ds, p)[..., None]
        ds *= p
        ds *= 1.0 / math.sqrt(q.shape[3])
        return np.concatenate([self._rows_of(d) for d in (ds @ k, ds.swapaxes(2, 3) @ q, dv)], axis=1)


def _rmsnorm(x: Array) -> tuple[Array, Array]:
    """y = x s and s = 1 / sqrt(mean(x^2) + 1e-5), for the rows of x (N, D)."""
    s = 1.0 / np.sqrt(np.einsum("nd,nd->n", x, x) * (1.0 / x.shape[1]) + 1e-5)[:, None]
    return x * s, s


def _rmsnorm_backward(dy: Array, y: Array, s: Array) -> Array:
    """dx = s (dy - y mean(dy y)) of y, s = _rmsnorm(x); dy is overwritten."""
    dy -= y * (np.einsum("nd,nd->n", dy, y) * (1.0 / y.shape[1]))[:, None]
    dy *= s
    return dy


def _logistic(a: Array) -> None:
    np.divide(1.0, 1.0 + np.exp(-a), out=a)


# The activations, each in place, and their derivatives from the result.
_ACTIVATIONS: dict[str, tuple[Callable[[Array], object], Callable[[Array], Array]]] = {
    "relu": (lambda a: np.maximum(a, 0.0, out=a), lambda y: y > 0.0),
    "tanh": (lambda a: np.tanh(a, out=a), lambda y: 1.0 - y * y),
    "logistic": (_logistic, lambda y: y * (1.0 - y)),
    "identity": (lambda a: a, lambda y: np.ones((), y.dtype)),
}


class MLPStep(_Step):
    """A whole training step of a network of linear layers over arrays, and Adam.

        a = X;  for each layer:  a = activation(a weight^T + bias), the last one without the activation

    params is the flat buffer of each layer's weight (out, in) and bias (out,), in the order of the layers; it is not
    copied, and `step` updates it.  activation: "relu", "tanh", "logistic" or "identity"; loss: "mse" or
    "cross_entropy".  N, the most rows of a batch, sizes the buffers.

    Attributes: params and grads (flat); layers and dlayers, the tensors in them as a pair for each layer; the moments
    m and v; t, the steps taken.
    """

    layers: list[tuple[Array, ...]]
    dlayers: list[tuple[Array, ...]]
    activation: str
    loss: str

    def __init__(
        self, params: Array, widths: Sequence[int], activation: str = "relu", loss: str = "mse", N: int = 8
    ) -> None:
        super().__init__(params)
        self.layers, self.dlayers = self._tensors(self.params, widths), self._tensors(self.grads, widths)
        self.activation, self.loss = activation, loss
        self._a = [np.empty((N, width), params.dtype) for width in widths[1:]]
        self._da = [np.empty((N, width), params.dtype) for width in widths[1:]]

    @staticmethod
    def _tensors(flat: Array, widths: Sequence[int]) -> Any:
        layers = []
        for n_in, n_out in pairwise(widths):
            weight, bias, flat = np.split(flat, [n_out * n_in, n_out * n_in + n_out])
            layers.append((weight.reshape(n_out, n_in), bias))
        return layers

    def outputs(self, X: Array) -> Array:
        """What the last layer gives for X (N, in): values or logits (N, out), overwritten by the next call."""
        self._x = [X]
        for i, (weight, bias) in enumerate(self.layers):
            a = self._a[i][: len(X)]
            np.matmul(self._x[-1], weight.T, out=a)
            a += bias
            if i < len(self.layers) - 1:
                _ACTIVATIONS[self.activation][0](a)
            self._x.append(a)
        return a

    def forward(self, X: Array, y: Array) -> Any:
        """The mean loss of a batch: X (N, in), and y (N, out) or, with cross-entropy, class ids (N,).

        The squared error is averaged over the outputs as well.  backward uses both arrays again.
        """
        out, self._y = self.outputs(X), y
        da = self._da[-1][: len(X)]
        if self.loss == "cross_entropy":
            losses, self._total, self._others = _softmax(out, y, da)
            return losses.mean()
        np.subtract(out, y, out=da)
        return np.vdot(da.conj(), da) / da.size

    def backward(self) -> None:
        """Add the gradient of the last forward's loss to grads."""
        N = len(self._y)
        dz = self._da[-1][:N]
        if self.loss == "cross_entropy":
            _softmax_grad(dz, self._y, np.full(N, 1.0 / N), self._total, self._others)
        else:
            dz *= 2.0 / dz.size
        for i in range(len(self.layers) - 1, -1, -1):
            x, (dweight, dbias) = self._x[i], self.dlayers[i]
            dweight += dz.T @ x
            dbias += dz.sum(axis=0)
            if i == 0:
                break
            da = self._da[i - 1][:N]
            np.matmul(dz, self.layers[i][0], out=da)
            da *= _ACTIVATIONS[self.activation][1](x)
            dz = da

    def step(
        self, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, grad_scale: float = 1.0
    ) -> None:
        """One step of Adam on params, from grads."""
        super().step(lr, beta1, beta2, eps, grad_scale)
