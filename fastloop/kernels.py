"""The compiled kernels for users' own training loops, checked at the boundary.

Each has the name and signature of its NumPy twin in fastloop.reference, and computes the same.  The loops are in csrc/;
only checks and documentation live here.

Common to all: the arrays of a call are all float64 or all float32, ids int64, losses float64, native byte order,
C-contiguous, and outputs are written in place.  NumPy arrays will do, and whatever NumPy can view without a copy, such
as a CPU torch tensor.  Before anything is written,

- TypeError is raised for what is not an array (None, a list), for another dtype than the first array's, and for what is
  not a number;
- ValueError for shapes that do not fit each other, memory that is strided, unaligned or read-only where it
  is written to, an output that overlaps another argument, and a number out of its range;
- IndexError for an id out of range, with its place: `targets[3] = 27 is outside [0, 27)`.

Sizes: N tokens, which may be 0; D embedding width, V vocabulary, T positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._check import array, ids, number, rounded, separate, whole
from ._core import engine

if TYPE_CHECKING:
    from ._types import Array, Number, View, Whole


def embedding_forward(inputs: View, positions: View, wte: View, wpe: View, x: View) -> None:
    """Token plus position embedding: x[n] = wte[inputs[n]] + wpe[positions[n]].

    inputs : (N,) int64 in [0, V)
    positions : (N,) int64 in [0, T)
    wte : (V, D)
    wpe : (T, D)
    x : (N, D), overwritten
    """
    inputs = array("inputs", inputs, (None,), np.int64)
    N = len(inputs)
    positions = array("positions", positions, (N,), np.int64)
    wte = array("wte", wte, (None, None))
    V, D = wte.shape
    wpe = array("wpe", wpe, (None, D), wte.dtype)
    x = array("x", x, (N, D), wte.dtype, writeable=True)
    ids("inputs", inputs, V)
    ids("positions", positions, len(wpe))
    separate({"x": x}, {"inputs": inputs, "positions": positions, "wte": wte, "wpe": wpe})
    engine(wte.dtype).embedding_forward(inputs, positions, wte, wpe, x)


def embedding_backward(inputs: View, positions: View, dx: View, dwte: View, dwpe: View) -> None:
    """The gradients of embedding_forward: dwte[inputs[n]] += dx[n], dwpe[positions[n]] += dx[n], in ascending n.

    inputs : (N,) int64 in [0, V)
    positions : (N,) int64 in [0, T)
    dx : (N, D), gradient by x
    dwte : (V, D), added to
    dwpe : (T, D), added to
    """
    inputs = array("inputs", inputs, (None,), np.int64)
    N = len(inputs)
    positions = array("positions", positions, (N,), np.int64)
    dx = array("dx", dx, (N, None))
    D = dx.shape[1]
    dwte = array("dwte", dwte, (None, D), dx.dtype, writeable=True)
    dwpe = array("dwpe", dwpe, (None, D), dx.dtype, writeable=True)
    ids("inputs", inputs, len(dwte))
    ids("positions", positions, len(dwpe))
    separate({"dwte": dwte, "dwpe": dwpe}, {"inputs": inputs, "positions": positions, "dx": dx})
    engine(dx.dtype).embedding_backward(inputs, positions, dx, dwte, dwpe)


def logits_forward(x: View, lm_head: View, logits: View) -> None:
    """Logits: logits = x lm_head^T.

    x : (N, D)
    lm_head : (V, D)
    logits : (N, V), overwritten
    """
    x = array("x", x, (None, None))
    N, D = x.shape
    lm_head = array("lm_head", lm_head, (None, D), x.dtype)
    logits = array("logits", logits, (N, len(lm_head)), x.dtype, writeable=True)
    separate({"logits": logits}, {"x": x, "lm_head": lm_head})
    engine(x.dtype).logits_forward(x, lm_head, logits)


def logits_backward(x: View, lm_head: View, dlogits: View, dx: View, dlm_head: View) -> None:
    """The gradients of logits_forward: dx = dlogits lm_head, dlm_head += dlogits^T x.

    x : (N, D)
    lm_head : (V, D)
    dlogits : (N, V), gradient by logits
    dx : (N, D), overwritten
    dlm_head : (V, D), added to
    """
    x = array("x", x, (None, None))
    N, D = x.shape
    lm_head = array("lm_head", lm_head, (None, D), x.dtype)
    V = len(lm_head)
    dlogits = array("dlogits", dlogits, (N, V), x.dtype)
    dx = array("dx", dx, (N, D), x.dtype, writeable=True)
    dlm_head = array("dlm_head", dlm_head, (V, D), x.dtype, writeable=True)
    separate({"dx": dx, "dlm_head": dlm_head}, {"x": x, "lm_head": lm_head, "dlogits": dlogits})
    engine(x.dtype).logits_backward(x, lm_head, dlogits, dx, dlm_head)


def cross_entropy_forward(logits: View, targets: View, losses: View) -> None:
    """Softmax cross-entropy of each row: losses[n] = log(sum_v exp(logits[n, v])) - logits[n, targets[n]].

    logits : (N, V); -inf means a probability of zero
    targets : (N,) int64 in [0, V)
    losses : (N,) float64, overwritten, in nats

    With m the largest logit and r the sum of exp(l - m) over the others, the loss is (m - l_target) + log1p(r), so
    that neither large logits nor a tiny loss lose precision.  exp(l - m) counts as 0 where l - m < -708 (float32: -87).

    Raises FloatingPointError for the first row whose loss is not finite: a logit is NaN or +inf, all are -inf, the
    target's is -inf, or the loss exceeds float64.  All of losses has been written by then.
    """
    logits = array("logits", logits, (None, None))
    N, V = logits.shape
    targets = array("targets", targets, (N,), np.int64)
    losses = array("losses", losses, (N,), np.float64, writeable=True)
    ids("targets", targets, V)
    separate({"losses": losses}, {"logits": logits, "targets": targets})
    engine(logits.dtype).cross_entropy_forward(logits, targets, losses)
    _require_finite(losses, logits, targets)


def cross_entropy_backward(logits: View, targets: View, dlogits: View) -> float:
    """Return the mean loss in nats, and its gradient: dlogits = (softmax(logits) - one_hot(targets)) / N.

    logits : (N, V); -inf means a probability of zero
    targets : (N,) int64 in [0, V)
    dlogits : (N, V), overwritten

    The losses are those of cross_entropy_forward.  softmax - 1, at the target, is taken as minus the sum of the other
    probabilities, so that the gradient of a confident model keeps all its digits.

    Raises FloatingPointError as cross_entropy_forward does; dlogits has been overwritten by then, and is meaningless.
    Raises ValueError where N = 0, which has no mean.
    """
    logits = array("logits", logits, (None, None))
    N, V = logits.shape
    if N == 0:
        raise ValueError(f"logits has shape {logits.shape}; expected at least one row, for a mean")
    targets = array("targets", targets, (N,), np.int64)
    dlogits = array("dlogits", dlogits, (N, V), logits.dtype, writeable=True)
    ids("targets", targets, V)
    separate({"dlogits": dlogits}, {"logits": logits, "targets": targets})
    loss = engine(logits.dtype).cross_entropy_backward(logits, targets, dlogits)
    if not np.isfinite(loss):
        losses = np.empty(N)
        engine(logits.dtype).cross_entropy_forward(logits, targets, losses)
        _require_finite(losses, logits, targets)
        raise FloatingPointError(f"the mean of {N} losses is {loss}; the largest is {losses.max()}")
    return loss


def _require_finite(losses: Array, logits: Array, targets: Array) -> None:
    if not np.isfinite(losses).all():
        n = np.flatnonzero(~np.isfinite(losses))[0]
        v = targets[n]
        raise FloatingPointError(
            f"losses[{n}] = {losses[n]}: targets[{n}] = {v}, logits[{n}, {v}] = {logits[n, v]}, "
            f"the row's largest logit is {logits[n].max()}"
        )


def adam_step(
    grad: View, param: View, m: View, v: View, *, lr: Number, beta1: Number, beta2: Number, eps: Number, t: Whole,
    weight_decay: Number = 0.0, decoupled: bool = False, grad_scale: Number = 1.0, zero_grad: bool = False,
) -> None:
    """One step of Adam in place, in one pass over memory.

    grad, param, m, v : arrays of one shape, which may be empty.  param and the moments m and v (zeros before
        the first step) are overwritten; grad is set to zero if zero_grad, and may be read-only if not.
    lr : learning rate, [0, inf)
    beta1, beta2 : decay of the moments in a step, [0, 1)
    eps : added to sqrt(v), (0, inf)
    t : this step's number, 1 for the first
    weight_decay : [0, inf); added to the gradient as weight_decay param, or, if `decoupled` (AdamW), taken off param
        as lr weight_decay param
    grad_scale : multiplies grad as it is read, for clipping or for a mean over accumulated gradients

    With g = grad_scale grad (+ weight_decay param, unless decoupled):

        m = beta1 m + (1 - beta1) g             v = beta2 v + (1 - beta2) g^2
        param = param (1 - lr weight_decay, if decoupled) - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    D. P. Kingma and J. Ba, Adam, ICLR 2015, algorithm 1; I. Loshchilov and F. Hutter, Decoupled weight decay
    regularization, ICLR 2019.  One difference: at every 16th step (at each where a beta is below 0.1) a moment below
    1e-290 in size becomes zero, since arithmetic on the subnormal numbers it would decay to is many times slower; where
    eps is below 1e-125 only one below (1e-20 eps)^2, too small to change a parameter.  In float32 the limits are 1e-35,
    betas below 0.7, and (1e-9 eps)^2 where eps is below 3e-9, and what would add less than that to v counts as 0.
    A NaN or infinite gradient is not refused, and spoils its own elements only; grad_norm serves as a finite check.
    """
    grad = array("grad", grad, writeable=zero_grad)
    param = array("param", param, grad.shape, grad.dtype, writeable=True)
    m = array("m", m, grad.shape, grad.dtype, writeable=True)
    v = array("v", v, grad.shape, grad.dtype, writeable=True)
    separate({"param": param, "m": m, "v": v}, {"grad": grad})
    lr = number("lr", lr, 0)
    beta1 = number("beta1", beta1, 0, 1)
    beta2 = number("beta2", beta2, 0, 1)
    eps = number("eps", eps, 0, above=True)
    if grad.dtype != np.float64 and not 0.0 < rounded(eps, grad.dtype) < np.inf:
        raise ValueError(f"eps = {eps} is {rounded(eps, grad.dtype)} in {grad.dtype}, expected a positive number there")
    t = whole("t", t)
    weight_decay = number("weight_decay", weight_decay, 0)
    grad_scale = number("grad_scale", grad_scale, above=True)
    engine(grad.dtype).adam_step(
        grad.reshape(-1), param.reshape(-1), m.reshape(-1), v.reshape(-1),
        lr, beta1, beta2, eps, t, weight_decay, decoupled, grad_scale, zero_grad,
    )


def grad_norm(grad: View) -> float:
    """Return the Euclidean norm sqrt(sum grad^2) of an array of any shape; 0.0 if it is empty.

    Neither overflows nor underflows unless the norm itself does.  It is not finite where an element is not, so that
    checking it is a finite check of the whole gradient.
    """
    grad = array("grad", grad)
    return engine(grad.dtype).grad_norm(grad.reshape(-1))
