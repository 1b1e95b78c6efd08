"""Plant faults in the kernels and in the Python modules, one at a time, and see that the tests notice.

    python tests/plant_faults.py [--only csrc|fastloop|faults] [--match TEXT] [--quick] [--jobs N]

Each fault is planted in a temporary copy of the tree: an old text, which must stand in its file exactly once, becomes a
new one.  A fault in csrc/ is built for one instruction set.  Then the tests of tests/test_*.py run, those
most likely to notice first, until one fails; a fault that only another instruction set has meets the tests of kernels
and models alone, and a third list of faults the one test in tests/faults/ that was written against its kind.
The sound tree must pass first, or nothing that follows would mean anything.
Prints for every fault where it was planted and which test caught it; exit status 1 where fewer than 95 % were caught,
2 where a fault no longer fits its file or the sound tree fails.  Needs gcc and Cython, and what the tests need.

A fault that survives takes all the tests; --quick leaves the others out.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENOUGH = 0.95
TIMEOUT = 600       # seconds that the tests of one fault may take: a fault that hangs counts as caught

# file, old, new, and where it matters the instruction set to build
CSRC = [
    # Adam: bias correction, moments, decay, the last values of an array
    ("step/adam.pxi", "-expm1(<double>t * log(beta1))", "-expm1(<double>(t + 1) * log(beta1))"),
    ("step/adam.pxi", "v_set(1.0 - c.beta2)", "v_set(1.0 - c.beta1)"),
    ("step/adam.pxi", "c.l2 = 0.0 if decoupled else weight_decay", "c.l2 = weight_decay"),
    ("step/adam.pxi", "1.0 - lr * weight_decay if", "1.0 - weight_decay if"),
    ("base/real.h", "#define FL_TINY 1e-290", "#define FL_TINY 0.0"),
    ("step/adam.pxi", "v_mul(g, grad_scale)", "g"),
    ("step/adam.pxi", "vi = v_flush(vi, tiny)", "pass"),
    ("step/adam.pxi", "min(TINY, (TINY_ROOT * eps) * (TINY_ROOT * eps))", "TINY"),
    ("step/adam.pxi", "or min(beta1, beta2) < TINY_BETA", ""),
    ("step/adam.pxi", "grad_scale == 1.0 and weight_decay == 0.0", "grad_scale == 1.0"),
    ("step/adam.pxi", "and move < LARGE\n", "\n"),
    ("step/adam.pxi", "g <= MODERATE", "g < LARGE"),
    ("step/adam.pxi", "largest if apart else largest + c.l2 * self.largest_param()", "largest"),
    ("step/adam.pxi", "memcpy(v + i, last[3], left)", "pass"),
    ("step/adam.pxi", "memset(grad + i, 0, left)", "pass"),
    ("step/adam.pxi", "share(n, i + 1, threads, PANEL)", "share(n, i + 1, threads, 1)"),
    ("step/optimizer.pxi", "self.taken += 1", "self.taken = 1"),
    # SGD
    ("step/sgd.pxi", "g + momentum * u if", "momentum * u if"),
    ("step/sgd.pxi", "1.0 if t == 1 else", "1.0 if t == 0 else"),
    ("step/sgd.pxi", "self.momentum * self.moment + fabs(c.gain) * g", "fabs(c.gain) * g"),
    ("step/sgd.pxi", "u = <real>0.0 if -tiny < u < tiny else u", "pass"),
    # what every optimiser does
    ("step/optimizer.pxi", "if (<char *>s.grad < <char *>other.param",
     "if (False and <char *>s.grad < <char *>other.param"),
    ("step/optimizer.pxi", "if not norm <= self.kernels.squarable:", "if not isfinite(norm):"),
    ("base/floats.pxi", "size if size and <uintptr_t>view.buf % size == 0 else 0", "size"),
    ("step/optimizer.pxi", "fits = fits and view.shape[j] == <Py_ssize_t>shape[j]", "pass"),
    ("step/optimizer.pxi", "if not 0.0 <= lr < INFINITY:", "if not lr < INFINITY:"),
    ("step/optimizer.pxi", "or self.look(lr)):", "or True):"),
    ("step/optimizer.pxi", "self.taken, self.moment = value, INFINITY", "self.taken = value"),
    ("step/optimizer.pxi", "PyBuffer_Release(&self.views[j])", "pass"),
    # norm and clipping: scaling out of range, sign, sums in blocks
    ("step/norm.pxi", "600 if total <= 1e-290 else -600", "-600 if total <= 1e-290 else 600"),
    ("step/norm.pxi", "1e-290 < total < INFINITY", "0.0 <= total < INFINITY"),
    ("step/norm.pxi", "(-most if x[i] < -most", "(most if x[i] < -most"),
    ("step/norm.pxi", "partial[i] = fl_sum_squares(x + i * NORM_BLOCK, min(NORM_BLOCK, n - i * NORM_BLOCK)",
     "partial[i] = fl_sum_squares(x + i * NORM_BLOCK, min(NORM_BLOCK, n - i * NORM_BLOCK - 1)"),
    # cross-entropy: digits of a confident model, ties, tiles of a large vocabulary, signs
    ("layers/cross_entropy.pxi", "log1p((s.count[t] - 1.0) + s.rest[t])", "log(s.count[t] + s.rest[t])"),
    ("layers/cross_entropy.pxi", "v_add(block_rest, v_where_equal(x, m, zero, e))", "v_add(block_rest, e)"),
    ("layers/cross_entropy.pxi", "v_mul(v_add(count, rest), v_exp", "v_mul(rest, v_exp"),
    ("layers/cross_entropy.pxi", "others = (s.count[t] - 1.0) + s.rest[t]", "others = s.count[t] + s.rest[t]"),
    ("layers/cross_entropy.pxi", "if s.target[t] == s.max[t]:", "if False:"),
    ("kernels.pxi", "return total + lost if isfinite(total) else total", "return total"),
    ("kernels.pxi", "return total + lost if isfinite(total) else total", "return total + lost"),
    # embedding: an id that occurs twice
    ("layers/embedding.pxi", "out[d] += row[d]", "out[d] = row[d]"),
    # matrix products: blocks of K, edges, strides, padding
    ("base/matmul.pxi", "                     accumulate or k > 0)", "                     accumulate)"),
    ("base/matmul.pxi", "whole, ldb, C + whole, ldc, accumulate or k > 0)", "whole, ldb, C + whole, ldc, accumulate)"),
    ("base/matmul.pxi", "A + (k // PANEL) * a_block, a_row, a_col, a_block,\n", "A, a_row, a_col, a_block,\n"),
    ("base/matmul.pxi", "memcpy(edge + PANEL * r, C + (i + r) * ldc, columns * sizeof(real))", "pass"),
    ("base/matmul.pxi", "x[t * ldx + d] if t < tokens else 0.0", "x[t * ldx + d] if t < tokens else 1.0"),
    ("base/matmul.pxi", "memset(out + i * ld + D, 0, (ld - D) * sizeof(real))", "pass"),
    ("layers/logits.pxi", "dx + n * D, D, v > 0)", "dx + n * D, D, False)"),
    # the language models' head: tiles, threads, the check of ids
    ("layers/head.pxi", "self.x.drows + t * ld, ld, v > 0)", "self.x.drows + t * ld, ld, False)"),
    ("layers/head.pxi", "share(rows, i + 1, threads, 1), add)", "share(rows, i + 1, threads, 1) - 1, add)"),
    ("layers/head.pxi", "softmax_exp(logits, rows, &self.softmax[p])", "pass"),
    ("layers/head.pxi", "if v + rows == self.V and not self.x.by_rows:", "if v == 0 and not self.x.by_rows:"),
    ("layers/head.pxi", "chunk_grad(&self.chunks, self.dlm_head, c), add and c == 0)",
     "chunk_grad(&self.chunks, self.dlm_head, c), add)"),
    ("layers/embedding.pxi", "memset(self.dwte, 0, size * sizeof(real))",
     "memset(self.dwte, 0, (size - 1) * sizeof(real))"),
    ("layers/embedding.pxi", "memset(self.chunks.sums, 0, (chunks - 1) * size * sizeof(real))", "pass"),
    ("layers/chunks.pxi", "for chunk in range(1, chunks):", "for chunk in range(1, chunks - 1):"),
    # layers, and the schedule that runs them
    ("layers/layer.pxi", "self.grad_of.grad if self.grad_of is not None else take", "take"),
    ("layers/layer.pxi", "take_values(arena, N, self.ld) if self.in_rows else self.drows", "self.drows"),
    ("models/language.pxi", "or tokens.block_size > self.T:", "or False:"),
    # linear layers
    ("layers/linear.pxi", "rows * sizeof(real)", "(rows - 1) * sizeof(real)"),
    ("layers/linear.pxi", "if whole < D:", "if whole > D:"),
    ("layers/linear.pxi", "dW + i * D, D, PANEL,\n                     add or n > 0)",
     "dW + i * D, D, PANEL,\n                     add)"),
    # attention: the mask, documents in one panel, the softmax's gradient, the cache
    ("layers/attention.pxi", "upper[t] - <real>b.positions[n] if n < b.N else upper[t]",
     "0.0 if n < b.N else upper[t]"),
    ("layers/attention.pxi", "v_where_less(end, at, hidden, x)", "x"),
    ("layers/attention.pxi", "v_sub(v_load(ds + PANEL * s), sum_)", "v_load(ds + PANEL * s)"),
    ("layers/attention.pxi", "if first > panel:", "if first >= panel:"),
    ("layers/attention.pxi", "kv + 2 * PANEL * s * D + PANEL * (D + d)", "kv + 2 * PANEL * s * D + PANEL * d"),
    # RMSNorm and ReLU
    ("layers/rmsnorm.pxi", "RMSNORM_EPS = 1e-5", "RMSNORM_EPS = 1.1e-5"),
    ("layers/rmsnorm.pxi", "a = v_fma(x0, x0, a)\n    v_store(scale", "pass\n    v_store(scale"),
    ("layers/activation.pxi", "v_where_less(v_set(0.0), y, dy, v_set(0.0))", "dy"),
    # the GPT
    ("layers/rmsnorm.pxi", "if self.y.overwritten else self.y.panels", "if False else self.y.panels"),
    ("layers/rmsnorm.pxi", "if self.x.sum is not None:", "if False:"),
    ("layers/rmsnorm.pxi", "# Uses: declarations, simd, layer.", "# Uses: declarations, layer."),
    ("layers/linear.pxi", "into.sum = self.y", "pass"),
    ("layers/layer.pxi", "if x.read_again:", "if False:"),
    ("models/language.pxi", "if layer.across:", "if False:"),
    ("models/language.pxi", "and not layer.adds_sum:", "and False:"),
    ("models/language.pxi", "and layer.y.grad_of is not None:", "and False:"),
    ("layers/attention.pxi", "self.across = True", "self.across = False"),
    ("models/language.pxi", "if block == 1:", "if block > 1:"),
    ("models/language.pxi", "elif block % 2:", "elif False:"),
    ("models/language.pxi", "if first > 0:", "if first > 1:"),
    ("models/language.pxi", "while last < n and not", "while last < n and"),
    ("models/model.pxi", "if position > self.cached:", "if False:"),
    ("models/language.pxi", "share(P, i + 1, threads, 1), False)", "share(P, i + 1, threads, 1) - 1, False)"),
    ("models/language.pxi", "share(P, i + 1, threads, 1), False)", "min(share(P, i + 1, threads, 1) + 1, P), False)"),
    # the MLP
    ("layers/activation.pxi", "v_sub(v_set(1.0), v_mul(y, y))", "v_sub(v_set(1.0), y)"),
    ("models/mlp.pxi", "if i < self.depth - 1:", "if i < self.depth:"),
    ("declarations.pxi", "min(tiles(n, size) * part // parts * size, n)", "n // size * part // parts * size"),
    ("layers/activation.pxi", "v_max(v_set(0.0), x)", "v_max(x, v_set(0.0))"),
    ("models/mlp.pxi", "outputs * sizeof(real))\n            if i > 0",
     "(outputs - 1) * sizeof(real))\n            if i > 0"),
    # the loop: clipping, what is not finite, accumulation, zeroing
    ("step/loop.pxi", "if self.optimizer is None:", "if False:"),
    ("step/loop.pxi", "clip_norm / norm if norm > clip_norm else 1.0", "clip_norm / norm"),
    ("step/loop.pxi", "isfinite(norm) and largest <= self.model.kernels.squarable", "isfinite(norm)"),
    ("step/loop.pxi", "finite = isfinite(loss)", "finite = True"),
    ("step/loop.pxi", "break\n                    self.model.add = True", "break"),
    ("step/loop.pxi", "self.model.size * self.model.kernels.itemsize)\n        self.model.busy = self.o",
     "0)\n        self.model.busy = self.o"),
    ("step/loop.pxi", "total = <double>(splits[(s + 1) * accumulate]", "total = <double>(splits[s * accumulate + 1]"),
    ("step/loop.pxi", "clipped[s] = outside > 0 or norm > clip_norm", "clipped[s] = outside > 0"),
    # one run, and one call, at a time
    ("step/loop.pxi", "self.fills = batch.fills", "self.fills = batch.fills + 1"),
    ("step/loop.pxi", "or batch.fills != self.fills:", "or False:"),
    ("step/loop.pxi", "if batch.n_predictions == 0:", "if False:"),
    ("data/tokens.pxi", "self.fills += 1", "pass"),
    ("data/tokens.pxi", "if count else NULL, count, total)", ", count or 1, total)"),
    ("step/loop.pxi", "if self.gate is not None and self.gate.run is not None:", "if False:"),
    ("base/arena.pxi", "if failed or counted != arena.size:", "if failed:"),
    ("declarations.pxi", "<size_t>n > most // item", "False"),
    ("declarations.pxi", "if bytes_ > most - begin:", "if False:"),
    ("declarations.pxi", "the same object\") if busy else 0", "the same object\") if False else 0"),
    ("models/model.pxi", "self.run = (what, get_ident())", "pass"),
    ("models/model.pxi", "if self.size != at:", "if self.size < at:"),
    ("models/gpt.pxi", "y = add(Linear(y, 4 * D,", "y = add(Linear(y, 3 * D,"),
    ("models/model.pxi", "if self.run is not None and self.run[1] != get_ident():", "if False:"),
    # batches
    ("data/tokens.pxi", "not 0 <= indices[i] < self.data.n_examples", "not 0 <= indices[i] <= self.data.n_examples"),
    ("data/tokens.pxi", "starts[self.n_examples] >= ids.shape[0]", "starts[self.n_examples] > ids.shape[0]"),
    ("data/arrays.pxi", "if weighs else 1.0) / total", "if weighs else 1.0) / count"),
    ("data/arrays.pxi", "if classes[i] < 0:", "if False:"),
    ("data/tokens.pxi", "as_array(self.starts)", "None"),
    ("data/tokens.pxi", "self.taken = bytes(indices), total", "pass"),
    # memory and threads
    ("base/arena.pxi", "if counted > self.size or", "if counted > self.size + 64 or"),
    ("base/threads.pxi", "if n <= fl_ready else fl_prepare(<int>n)", ""),
    ("base/threads.h", "omp_pause_resource_all(omp_pause_hard) == 0", "1"),
    # vectors: digits, NaN, the ends of the range, what only one instruction set has
    ("base/simd.h", "0x1.5555555553d63p-5", "0x1.5555556553d63p-5"),
    ("base/simd.h", "#define FL_EXP_LEAST -708.0", "#define FL_EXP_LEAST -744.0"),
    ("base/simd.h", "fl_exp_parts(v_max(v_set(-40.0), y), &scale)", "fl_exp_parts(v_max(y, v_set(-40.0)), &scale)"),
    ("base/simd.h", "FL_SELECT(a.r[i_] < b.r[i_]", "FL_SELECT(a.r[i_] <= b.r[i_]"),
    ("base/simd.h", "(blocks || FL_APART) && K > FL_PANEL ? FL_PANEL : K", "K"),
    ("base/simd.h", "_mm256_permute2f128_pd(ab1, cd1, 0x31)", "_mm256_permute2f128_pd(ab1, cd1, 0x20)", "avx2"),
    ("base/simd.h", "_mm512_fpclass_pd_mask(x.r[i_], 0x0e)", "_mm512_fpclass_pd_mask(x.r[i_], 0x06)", "avx512"),
    ("base/simd.h", "c2 = v_set(0.375)", "c2 = v_set(0.37)", "avx512"),
    ("base/simd.h", "FL_CASE(4) FL_CASE(5)", "FL_CASE(4)", "avx512"),
    ("base/simd.h", "FL_SELECT(a.r[i_] > b.r[i_], a.r[i_], b.r[i_])",
     "FL_SELECT(b.r[i_] < a.r[i_], b.r[i_], a.r[i_])", "baseline"),
    # models of the user's own, and their batches
    ("data/any.pxi", "self.weighed != self.total", "False"),
    ("data/any.pxi", "self.weights.setflags(False)", "pass"),
    ("data/any.pxi", "crc32(array.reshape(-1).view(\"u1\"), ", "int("),
    ("models/own.pxi", "if not self.add:", "if False:"),
    ("models/own.pxi", "self.gate.passed = self", "pass"),
    ("models/own.pxi", "return NAN if self.failed else self.loss", "return self.loss"),
    ("models/own.pxi", "self.loss * self.batch.n_predictions", "self.loss"),
    ("models/own.pxi", "if tuple(shape) != ():", "if False:"),
    ("step/loop.pxi", "loss, finite = NAN, False", "pass"),
    # torch's optimisers
    ("step/tensors.pxi", "known[0] is param and", "True and"),
    ("step/tensors.pxi", "same = same and part.param == address(param)", "pass"),
    ("step/tensors.pxi", "known[4 + i] is entry.get(slots[i]) and part.state[i]", "part.state[i]"),
    ("step/tensors.pxi", "and part.state[i] == address(known[4 + i])", ""),
    ("step/tensors.pxi", "part.t = 1\n", "part.t = 2\n"),
    ("step/tensors.pxi", "entry[self.slots[0]] = None", "pass"),
    ("step/tensors.pxi", "self.known = [None] * self.room\n", "pass\n"),
    ("step/tensors.pxi", "and grad.is_contiguous() and", "and"),
    ("step/tensors.pxi", "(<float *>part.step)[0] += 1.0", "pass"),
    ("step/tensors.pxi", "return min(part.n, WIDEST_PANEL", "return min(part.n, 15"),
    ("step/norm.pxi", "c = v_fma(v_load(x + i + 2 * PANEL), zero, c)", "pass"),
    ("step/norm.pxi", "total += x[i] * <real>0.0", "pass"),
    # scikit-learn's losses, penalty and weights
    ("models/mlp.pxi", "min(max(loss, -log1p(-eps)), -log(eps))", "loss"),
    ("models/mlp.pxi", "(p if x >= 0.0 else q) - targets", "p - targets"),
    ("models/mlp.pxi", "(y * (log(y) - z[n * ld + i]) if y > 0.0 else 0.0) - y + p", "p"),
    ("models/mlp.pxi", "0.5 * self.alpha * total / self.rows.total", "0.5 * self.alpha * total"),
    ("models/mlp.pxi", "add_scaled(self.alpha / self.rows.total", "add_scaled(self.alpha"),
    ("models/mlp.pxi", "self.losses[n] *= 0.5", "pass"),
    ("data/arrays.pxi", "total += self.weights[indices[n]]", "total += 1.0"),
    ("step/adam.pxi", "c.eps *= c.v_scale", "pass"),
    ("layers/activation.pxi", "v_mul(dy, v_mul(y, v_sub(v_set(1.0), y)))", "v_mul(dy, y)"),
    ("layers/cross_entropy.pxi", "(<double>s.max[t] - s.target[t])", "(s.max[t] - s.target[t])"),
]

FASTLOOP = [
    # checks of arrays and numbers
    ("_check.py", "is None else a.dtype != dtype:", "is None else a.dtype.kind != np.dtype(dtype).kind:"),
    ("_check.py", "if not a.flags.c_contiguous:", "if False:"),
    ("_check.py", "if not a.flags.aligned:", "if False:"),
    ("_check.py", "if writeable and not a.flags.writeable:", "if False:"),
    ("_check.py", "x.max() >= limit)", "x.max() > limit)"),
    ("_check.py", "if np.may_share_memory(x, y):", "if x is y:"),
    ("_check.py", "or not plain < high:", "or not plain <= high:"),
    ("_check.py", "(low < plain if above else low <= plain)", "(low <= plain)"),
    ("_check.py", "if isinstance(x, BOOLS) or not isinstance(x, numbers.Real):", "if not isinstance(x, numbers.Real):"),
    ("_check.py", "if isinstance(x, BOOLS):\n            raise", "if False:\n            raise"),
    ("_check.py", "    return bool(x)", "    return x"),
    ("threads.py", 'n = whole("n", n, 1, MAX_THREADS + 1)', "assert isinstance(n, int) and 0 < n <= MAX_THREADS"),
    ("_check.py", "return others.get(near[0], near[0]) if near", "return near[0] if near"),
    ("trainer.py", "return self.optimizer.lr * factor(self.steps - self.last_fit.start)", "return self._lr()"),
    ("trainer.py", 'setattr(self, name, number(name, getattr(self, name), 0.0, above=True))', "pass"),
    ("codec.py", "if classes.get(kind.__name__) is not kind and", "if False and"),
    ("arrays.py", "(y >= n)", "(y > n)"),
    ("arrays.py", "if not finite.all():", "if False:"),
    ("arrays.py", 'np.array(array, dtype, order="C")', 'np.require(array, dtype, ["C", "ALIGNED"])'),
    ("arrays.py", "array = np.array(_read(name, value))", "array = _read(name, value)"),
    ("kernels.py", 'ids("positions", positions, len(wpe))', 'ids("positions", positions, V)'),
    ("kernels.py", '"lm_head": lm_head, "dlogits": dlogits}', '"lm_head": lm_head}'),
    ("kernels.py", "def grad_norm(grad: View) -> float:", "def grad_norm(grad: View):"),
    ("trainer.py", "def lend(self, what: str) -> Loan:", "def lend(self, what) -> Loan:"),
    ("kernels.py", 'number("eps", eps, 0, above=True)', 'number("eps", eps, 0)'),
    ("kernels.py",
     "cross_entropy_forward(logits, targets, losses)\n    _require_finite(losses, logits, targets)\n\n",
     "cross_entropy_forward(logits, targets, losses)\n\n"),
    ("params.py", "if value.shape != view.shape:", "if False:"),
    ("params.py", "def __reduce__(self) -> tuple[object, ...]:", "def plain_reduce(self):"),
    ("params.py", "self._flat[...] = value", "self._flat = value"),
    ("errors.py", "def __reduce__(self) -> tuple[object, ...]:", "def plain_reduce(self):"),
    ("params.py", "-raw.ctypes.data % ALIGNMENT", "8 - raw.ctypes.data % ALIGNMENT % 8"),
    # models and sampling
    ("models.py", "if count < 1:", "if count < 0:"),
    ("models.py", "if name in (\"params\", \"grads\") and", "if False and"),
    ("models.py", "if name in (\"dtype\", *self.config_names) and", "if False and"),
    ("models.py", "init_std, 0.0, MOST_STD[dtype.itemsize])", "init_std, 0.0)"),
    # float32
    ("models.py", "lost = np.isinf(into.flat) & np.isfinite(values.flat)", "lost = np.zeros(1, bool)"),
    ("models.py", "if value.dtype.itemsize > 2 and value.dtype != self.dtype:", "if False:"),
    ("models.py", '{**config, "dtype": self.dtype.name}', "config"),
    ("models.py", "drawn = self.params if dtype == np.float64 else Params(shapes)", "drawn = self.params"),
    ("models.py", "logits = logits.astype(np.float64, copy=False)", "pass"),
    ("params.py", "not np.can_cast(dtype, self._flat.dtype)", "False"),
    ("optim.py", "            if p.dtype != dtype:", "            if False:"),
    ("optim.py", "if params.flat.dtype != dtype:", "if False:"),
    ("optim.py", "if not 0.0 < eps < inf:", "if False:"),
    ("optim.py", "np.zeros(p.shape, dtype)", "np.zeros(p.shape)"),
    ("codec.py", "dtype = of_model if dtype is None else np.dtype(dtype)", "dtype = np.dtype(dtype or array.dtype)"),
    ("diagnose.py", "beta2**trainer.optimizer.t < forgotten", "beta2**trainer.optimizer.t < 0.0"),
    ("gradcheck.py", "return {name: 4.0 * float(", "return {name: 0.0 * float("),
    ("models.py", "(cumulative <= u[:, None]", "(cumulative < u[:, None]"),
    ("models.py", "kept[before >= top_p", "kept[before + kept >= top_p"),
    ("models.py", "np.exp((logits - largest) / temperature)", "np.exp(logits / temperature)"),
    ("models.py", "logits[:, tokenizer.bos] = -np.inf", "pass"),
    ("models.py", '@np.errstate(over="ignore", under="ignore")\ndef sample(', "def sample("),
    ("models.py", "if value.shape != self.params[name].shape or value", "if value"),
    ("models.py", "if i < last and activation", "if i <= last and activation"),
    ("models.py", "e = np.exp(logits - largest)", "e = np.exp(logits)"),
    ("models.py", "next_logits = self._spare.pop()", "next_logits = self._spare[0]"),
    ("models.py", "ends = np.cumsum([", "ends = np.add(1, ["),
    ("models.py", "if found[:2] != ([V, D], [T, D]) or", "if"),
    ("tokenizer.py", "return cls.from_dict(json.loads(text))", "return cls([text])"),
    ("tokenizer.py", "AttributeError, RecursionError) as error:", "AttributeError) as error:"),
    ("tokenizer.py", 'if not hasattr(docs, "__iter__"):', "if False:"),
    # optimisers
    ("optim.py", "if norm is None:", "if False:"),
    ("optim.py", "self._core.t = self._t\n        self.model", "self.model"),
    ("optim.py", "if params.shapes != shapes:", "if False:"),
    ("optim.py", "self._take(self._given, self._state)", "self._take(self._given)"),
    ("optim.py", "if start < end:", "if False:"),
    ("optim.py", 'if name in (*self.hyper, "weight_decay", "no_decay") and', "if name in self.hyper and"),
    ("optim.py", "if decay != self._decays[i]:", "if False:"),
    ("optim.py", "if not np.isfinite(a).all():", "if False:"),
    ("optim.py", 'if slot == "exp_avg_sq" and a.size and a.min() < 0.0:', "if False:"),
    ("optim.py", "if found != set(self.slots):", "if False:"),
    ("optim.py", "isinstance(value, float) and value.is_integer():", "isinstance(value, float):"),
    ("optim.py", "            if self._tensors:\n", "            if False:\n"),
    ("optim.py", "self.t = max(steps, default=0)", "pass"),
    ("optim.py", "(self.momentum == 0.0 or self.dampening != 0.0)", "momentum == 0.0"),
    ("optim.py", "{slot: a.copy() for slot, a in slots.items()}", "{slot: a for slot, a in slots.items()}"),
    ("optim.py", "if not decays or decays[-1] != decay:", "if not decays:"),
    ("optim.py", 'tensor == name or tensor.endswith(f".{name}")', "tensor == name"),
    # schedules
    ("schedules.py", "slope * step / steps if step < steps else end, linear", "slope * step / steps, linear"),
    ("schedules.py", "then(0) * (step + 1)", "schedule(0) * step"),
    ("schedules.py", "return _call, self._made", "return _call, (constant, {})"),
    ("schedules.py", "pct_start * steps - 1.0, steps - 1", "pct_start * steps, steps - 1"),
    ("schedules.py", "bisect_right(starts, step)", "bisect_right(starts, step - 1)"),
    ("schedules.py", "if b <= a:", "if b < a:"),
    ("schedules.py", "bind(n - used)", "bind(n)"),
    ("schedules.py", "nan if isinstance(product, complex) else float(product)", "float(product)"),
    ("schedules.py", "turn = steps - decay", "turn = steps - decay + 1"),
    # the order of the examples
    ("sampler.py", "-(-n // (batch_size * accumulate))", "max(1, n // (batch_size * accumulate))"),
    ("sampler.py", "edges = np.minimum(edges, limit[:, None])", "pass"),
    ("sampler.py", "default_rng([self.seed, block])", "default_rng(self.seed)"),
    # the five moves, evaluation, checkpoints of a trainer
    ("tokenizer.py", "list(self.chars) if _has_surrogates(self.chars) else self.chars", "self.chars"),
    ("trainer.py", "if norm > max_norm:", "if norm > 0.0:"),
    ("trainer.py", "self._micro >= self.grad_accum)", "self._micro > self.grad_accum)"),
    ("trainer.py", "READY     = \"zero_grad()\",          None,     NO_LOSS, NO_GRADIENT,  NO_NEW, None",
     "READY     = \"zero_grad()\",          None,     NO_LOSS, NO_GRADIENT,  None, None"),
    ("trainer.py", "        self.schedule = self._schedule\n", ""),
    ("trainer.py", "        self._wire()\n        self.steps = steps\n", "        self._wire()\n"),
    ("trainer.py", "Alone(self.model.gate, what)", "Alone(_core.variant.Gate(), what)"),
    ("trainer.py", "self.loop.scale_grads(self.grad_accum / self._micro)", "pass"),
    ("trainer.py", "        self._stage = STEPPED\n", "        self._stage = READY\n"),
    ("trainer.py", "data.n_examples * self.grad_accum)", "data.n_examples)"),
    ("trainer.py", 'raise AttributeError(f"{name} is fixed', 'return (f"{name} is fixed'),
    ("trainer.py", '"steps", value, 0)', '"steps", value, -9)'),
    ("checkpoint.py", "if len(text) > META_LIMIT:\n        size", "if False:\n        size"),
    ("fit.py", "as interrupt, interrupt, self", "as interrupt, self"),
    ("fit.py", "                self.__exit__()\n", ""),
    ("trainer.py", "is BACKWARD else -1.0", "is BACKWARD else self.loop.norm"),
    ("trainer.py", "return total / predictions", "return total / len(examples)"),
    ("codec.py", 'trainer.notes = t, meta["steps"],', "trainer.notes = t, 0,"),
    ("codec.py", "if arrays:\n", "if False:\n"),
    # a run: best so far, patience, resuming, pauses, Ctrl-C
    ("fit.py", "if data.fingerprint() != settings.fingerprint or ", "if "),
    ("fit.py", "if validation is not None and fit.validation_fingerprint not in", "if None not in"),
    ("fit.py", "else self.best_loss - settings.min_delta", "else self.best_loss"),
    ("fit.py", "if taken and len(history) == chunk.rows:", "if taken:"),
    ("fit.py", "self.record(chunk, time.perf_counter())\n            raise", "raise"),
    ("fit.py", "if len(history) and not history.lr.any():", "if False:"),
    ("trainer.py", "if self.steps - fit.start != len(fit.history):", "if False:"),
    ("trainer.py", "self.model.classes = classes\n", "pass\n"),
    ("trainer.py", "if isinstance(factor, Real) else", "if True else"),
    ("sampler.py", "<= first + steps <= self.end:", "<= self.end:"),
    ("diagnose.py", "_not_finite(view) or _zero(view)", "_not_finite(view)"),
    ("trainer.py", "np.append(np.arange(0, last, data.block_size), last)", "np.arange(0, last + 1, data.block_size)"),
    ("fit.py", "fit.stale >= patience", "fit.stale > patience"),
    ("fit.py", "best = params.copy() if", "best = params if"),
    ("fit.py", "count = min(count, n - done % n)", "pass"),
    ("fit.py", 'history.interrupted = "interrupted", True', 'history.interrupted = "interrupted", False'),
    ("fit.py", "losses[-2 * n : -n].mean()", "losses[:-n].mean()"),
    ("fit.py", "if taken < count:", "if False:"),
    ("fit.py", "fit.best_params is not None and not history.interrupted:", "fit.best_params is not None:"),
    # checkpoint files
    ("codec.py", "if kinds and type(value) not in kinds:", "if False:"),
    ("codec.py", "if array.dtype != dtype or array.shape != shape:", "if array.shape != shape:"),
    ("codec.py", '"exp_avg_sq": (None, 0.0)', '"exp_avg_sq": (None, -INF)'),
    ("checkpoint.py", "os.fsync(file.fileno())", "pass"),
    ("checkpoint.py", "if digest(body) != comment[len(MARK) :]:", "if False:"),
    ("checkpoint.py", "os.remove(temporary)", "pass"),
    ("checkpoint.py", "if found != FORMAT:", "if False:"),
    ("checkpoint.py", "os.urandom(8).hex()", "os.getpid()"),
    ("train.py", "    except OSError:\n        silence_stdout()", "    except OSError:\n        pass"),
    ("flags.py", "if keys.setdefault(flag, name) != name:", "if False:"),
    ("train.py", "trainer.schedule = trainer.schedule.for_steps(length_in_steps(", "(length_in_steps("),
    ("callbacks.py", "error.strerror, os.fspath(self.path)) from None", "error.strerror) from None"),
    ("checkpoint.py", "os.path.basename(target)[:40]", "os.path.basename(target)"),
    ("checkpoint.py", "error.filename in (temporary, None):", "error.filename == temporary:"),
    ("checkpoint.py", "if sum(part.file_size for part in parts) > len(data):", "if False:"),
    ("fit.py", "checkpoint.check_folder(checkpoint.best_path(save))", "pass"),
    ("checkpoint.py", "if not stat.S_ISREG(found.st_mode):", "if False:"),
    ("checkpoint.py", "target = os.path.realpath(path)", "target = os.path.abspath(path)"),
    ("checkpoint.py", "os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) & 0o777)", "pass"),
    # text and documents
    ("tokenizer.py", "if ids.min() < 0:", "if False:"),
    ("tokenizer.py", "int(codes[-1]) + 2", "int(codes[-1]) + 1"),
    ("tokenizer.py", "or list(chars) != sorted(set(chars))", "or False"),
    ("data.py", 'text.removeprefix("\\ufeff")', "text"),
    ("data.py", "[positions < block_size]", "[positions <= block_size]"),
    ("data.py", "n_first + extra * V", "n_first + extra"),
    ("data.py", "if n_val == n:", "if False:"),
    ("data.py", '.replace("\\r", "\\n").split("\\n")', '.split("\\n")'),
    # what is recorded and shown
    ("history.py", '[-whole("window", window) :]', '[-whole("window", window) - 1 :]'),
    ("history.py", "perf_counter() - state[\"_began\"]", "perf_counter()"),
    ("history.py", "np.maximum(last - window, 0)", "np.maximum(last - window - 1, 0)"),
    ("history.py", "strict=True), 1):", "strict=True)):"),
    ("history.py", "if len({lengths[name] for name in cls.columns}) > 1 or ", "if "),
    ("callbacks.py", 'if file.read(1) != b"\\n":', "if False:"),
    ("callbacks.py", "not math.isfinite(v) else v", "math.isnan(v) else v"),
    ("callbacks.py", '("speed", "norm", "lr", "left", "step")', '("left", "speed", "norm", "lr", "step")'),
    # the range test, diagnosis, gradcheck
    ("trainer.py", "        trainer.optimizer.load_state_dict(self.state)\n", ""),
    ("lr_find.py", " as loan, loan:", " as loan:"),
    ("trainer.py", "        trainer.optimizer.load_state_dict(self.state)   #", "        #"),
    ("lr_find.py", "(step - first) / (steps - 1)", "(step - first) / steps"),
    ("lr_find.py", "self.total / self.weight)", "self.total)"),
    ("lr_find.py", 'if not hasattr(trainer, "lend"):', "if False:"),
    ("diagnose.py", "if not isinstance(run, History) and not (", "if False and not ("),
    ("extras.py", "except package.SafetensorError as error:", "except ZeroDivisionError as error:"),
    ("fit.py", "if not any(hasattr(callback, name) for name in METHODS):", "if False:"),
    ("tokenizer.py", 'if not (hasattr(tokenizer, "vocab_size") and hasattr(tokenizer, "encode")):', "if False:"),
    ("diagnose.py", "ALWAYS = 0.95", "ALWAYS = 0.5"),
    ("diagnose.py", "rise <= OVERFIT * abs(losses[best])", "rise <= 0.0"),
    ("diagnose.py", "if trainer.history.predictions < SEEN * len(rows):", "if False:"),
    ("diagnose.py", "np.isfinite(history.loss) & ~np.isinf(history.norm)", "np.isfinite(history.loss)"),
    ("gradcheck.py", "if beyond > tol * largest:", "if beyond > tol:"),
    ("gradcheck.py", "return math.inf, math.inf, slope", "return 0.0, 0.0, slope"),
    ("gradcheck.py", "original.params.flat[:], original.grads.flat[:] = params, grads",
     "model.params.flat[:] = params"),
    # the command
    ("arrays.py", "isinstance(part, np.ma.MaskedArray)", "False"),
    ("arrays.py", "order[np.minimum(np.searchsorted(classes, y, sorter=order), n - 1)]",
     "np.minimum(np.searchsorted(classes, y), n - 1)"),
    ("tokenizer.py", 'isinstance(docs, dict) or hasattr(docs, "columns")', "False"),
    ("trainer.py", "self._hold_out(data, y, share, fit.settings.seed)", "self._hold_out(data, y, share, 0)"),
    ("threads.py", "_num_threads = n if _core.variant.openmp else 1", "_num_threads = n"),
    ("_core/__init__.py", "isinstance(problem, ModuleNotFoundError) and os.path", "False and os.path"),
    ("threads.py", "    set_num_threads(1)\n    _stuck", "    _stuck"),
    ("flags.py", "if isinstance(value, bool) != (ALL_FLAGS[flag].kind is bool) or", "if"),
    ("flags.py", "args = parser.parse_args([*from_file, *argv])", "args = parser.parse_args([*argv, *from_file])"),
    ("flags.py", "if chosen not in users:", "if False:"),
    ("flags.py", "if path is not None and value == flag.default:", "if path is not None:"),
    ("flags.py", 'if flag in PATHS and "\\0" in (value or ""):', "if False:"),
    ("flags.py", '"decay of Adam\'s second moment", FOR_ADAM)', '"decay of Adam\'s second moment")'),
    ("configfile.py", '.removeprefix("\\ufeff")', ""),
    ("_command.py", "    signal.signal(signal.SIGINT, leave)", "    pass"),
    ("train.py", "refused = given - flags.RESUMABLE", "refused = set()"),
    ("train.py", "flags.refuse_unused(merged, {flag: own[key(flag)] for flag in given})", "pass"),
    ("train.py", "return 130 if history.interrupted else 0", "return 0"),
    ("train.py", "first = len(text) - int(", "first = int("),
    ("train.py", "if other != name and (other, name) not in", "if False and (other, name) not in"),
    ("train.py", "if os.path.islink(best := checkpoint.best_path(args.resume)):", "if False:"),
    ("train.py", "if n >= len(train):", "if True:"),
    ("train.py", "    write(job)\n    return conclude", "    return conclude"),
    ("train.py", "not history.mean_loss(n) <= history.loss[0]", "False"),
    ("train.py", "trainer.last_fit.lengthen(now)", "pass"),
    ("train.py", "if getattr(sys, name) is None:", "if False:"),
    ("configfile.py", "line.encode('unicode_escape')", "line.encode()"),
    ("train.py", 'f"sample {done:,}"', '"sample"'),
    ("_core/__init__.py", "sys.exit(2)", "pass"),
    # models of the user's own, and the doors
    ("models.py", "if gradients.keys() != self._tensors.keys():", "if False:"),
    ("models.py", "if gradient.dtype != self.dtype or gradient.shape != shape:", "if False:"),
    ("models.py", 'if name in ("config", "num_params"):', "if False:"),
    ("models.py", "if not callable(getattr(self, name, None)):", "if False:"),
    ("arrays.py", "if not rows or len(set(rows.values())) > 1:", "if False:"),
    ("arrays.py", "if array.dtype.hasobject:", "if False:"),
    ("codec.py", "if mine != description:", "if False:"),
    ("codec.py", "model.params.flat = values.flat", "pass"),
    ("fit.py", "self.length = 1 if own else", "self.length = 5000 if own else"),
    ("trainer.py", "except BaseException:       # from a model of the user's own", "except ZeroDivisionError:       #"),
    ("torch.py", 'if group.get(name):', "if False:"),
    ("torch.py", '-1.0 if group["maximize"] else 1.0,\n        )\n\n\nclass AdamW',
     "1.0,\n        )\n\n\nclass AdamW"),
    ("torch.py", "if start < end:\n", "if False:\n"),
    ("torch.py", "if value.stride() == param.stride() and not value.is_neg():", "if True:"),
    ("torch.py", "torch.autograd.graph.increment_version(tensors.params)", "pass"),
    ("torch.py", '{**super().__getstate__(), "check_finite": self.check_finite}', "super().__getstate__()"),
    ("sklearn.py", "mine[...] = value / -lr", "mine[...] = value"),
    ("sklearn.py", "self.moments[0].flat *= self.lr / new", "pass"),
    ("sklearn.py", "optimizer.t = t = self.core.t", "t = self.core.t"),
    ("sklearn.py", "self._end_epoch(run, held, held_rows) or incremental", "self._end_epoch(run, held, held_rows)"),
    ("sklearn.py", "keep=incremental or not self.reset_optimizer", "keep=incremental"),
    ("sklearn.py", "of_classes * np.asarray(sample_weight)", "of_classes"),
    ("sklearn.py", "if self.shuffle:", "if True:"),
    ("sklearn.py", "stratify=y if classifies and self.n_outputs_ == 1 else None", "stratify=None"),
]

# The test in tests/faults/ that must see it, alone; file, old, new.
FAULTS = [
    ("kill", "fastloop/checkpoint.py", "os.replace(temporary, target)",
     "os.remove(temporary)\n        open(path, 'wb').write(b''.join(parts))"),
    ("kill", "fastloop/checkpoint.py", "os.fsync(descriptor)", "pass"),
    ("kill", "fastloop/checkpoint.py", "except BaseException as error:", "except OSError as error:"),
    ("resume", "fastloop/codec.py", "optimizer.t, trainer.steps, trainer.notes = t,",
     "optimizer.t, trainer.steps, trainer.notes = t - 1,"),
    ("resume", "fastloop/codec.py", "setattr(fit, name, meta[name])", "pass"),
    ("resume", "fastloop/codec.py", 'fit.best_params = take_array(', 'take_array('),
    ("resume", "fastloop/sampler.py", "self.seed, block]", "self.seed, block, id(self)]"),
    ("signals", "fastloop/fit.py", "CHUNK_SECONDS = 0.04", "CHUNK_SECONDS = 40.0"),
    ("signals", "fastloop/fit.py", "signal.signal(signal.SIGINT, self.note)", "pass"),
    ("threads", "fastloop/threads.py", "    set_num_threads(1)\n    _stuck", "    _stuck"),
    ("threads", "csrc/layers/chunks.pxi", "if rows <= V_TILE:", "if threads_for(N * 1000) > 1:"),
    ("nomemory", "csrc/base/arena.pxi", "if memory == NULL:", "if False:"),
    ("nomemory", "csrc/base/arena.pxi", "            memory = PyMem_RawMalloc",
     "            self.size = counted\n            memory = PyMem_RawMalloc"),
    ("overrun", "csrc/step/adam.pxi", "memcpy(last[1], param + i, left)", "memcpy(last[1], param + i, 64)"),
    ("overrun", "csrc/step/adam.pxi", "memcpy(param + i, last[1], left)", "memcpy(param + i, last[1], 64)"),
    ("overrun", "csrc/base/matmul.pxi", "memcpy(C + (i + r) * ldc, edge + PANEL * r, columns * sizeof(real))",
     "memcpy(C + (i + r) * ldc, edge + PANEL * r, (columns + 1) * sizeof(real))"),
    ("overrun", "csrc/models/mlp.pxi", "layer.bias + j, outputs * sizeof(real))", "layer.bias + j, 64)"),
    ("fuzz", "fastloop/checkpoint.py", "except Exception as error:", "except ValueError as error:"),
    ("fuzz", "fastloop/train.py", "(errors.FastloopError, ValueError, OSError,", "(errors.FastloopError, OSError,"),
    ("fuzz", "fastloop/train.py", "stored = flags.parse_stored(stored, args.resume)",
     "stored = {**vars(args), **stored}"),
    ("environment", "csrc/core.pyx", "include \"base/threads.pxi\"",
     'cdef extern from "fenv.h":\n    int fesetround(int)\nfesetround(0)\ninclude "base/threads.pxi"'),
    ("long", "csrc/base/real.h", "#define FL_TINY 1e-290", "#define FL_TINY 0.0"),
    ("setup", "setup.py", "self.force = True", "self.force = False"),
    ("setup", "setup.py", "            version, c.compiler_so,", "            c.compiler_so,"),
]

LISTS = {"csrc": CSRC, "fastloop": FASTLOOP, "faults": FAULTS}

# The tests most likely to notice, by the name of the file without its ending; for others, test_<name>.py.
MODELS = "gradients gpt mlp trainer numerics"
FIRST = {
    "adam": "kernels optim numerics finite sklearn", "sgd": "optim trainer finite", "optimizer": "core optim finite",
    "norm": "kernels optim numerics torch", "cross_entropy": f"kernels {MODELS}",
    "embedding": f"kernels layers {MODELS}", "any": "own", "own": "own", "tensors": "torch",
    "matmul": f"kernels {MODELS}", "logits": "kernels",
    "language": MODELS, "linear": "layers gpt", "attention": "layers gpt", "rmsnorm": "csrc layers gpt", "gpt": "gpt",
    "mlp": "mlp sklearn", "activation": "layers mlp gpt sklearn", "head": f"layers {MODELS}",
    "layer": f"layers {MODELS}",
    "chunks": MODELS, "declarations": "mlp gpt core one_at_a_time", "arena": "core",
    "real": "kernels optim numerics finite", "floats": "core optim",
    "loop": "core trainer mlp optim one_at_a_time finite own", "tokens": "core data gpt trainer copies",
    "arrays": "core mlp own trainer copies one_at_a_time sklearn", "threads": "config trainer core gpt one_at_a_time",
    "model": "one_at_a_time",
    "simd": f"kernels {MODELS}", "_check": "kernels optim",
    "fit": "own trainer checkpoint finite settings", "codec": "own checkpoint settings trainer",
    "models": "own models strict_numpy copies checkpoint mlp trainer gpt",
    "sampler": "trainer checkpoint", "config": "config",
    "params": "params copies trainer", "errors": "copies", "history": "history copies", "optim": "optim copies",
    "schedules": "schedules copies finite", "flags": "train", "configfile": "train", "_command": "train",
    "tokenizer": "tokenizer logits", "extras": "extras logits",
    "trainer": "own models trainer checkpoint copies one_at_a_time finite hold_out", "__init__": "core",
}

AVX2 = ["-mavx2", "-mfma"]
FLAGS = {"baseline": [], "avx2": AVX2, "avx512": [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512vl"]}
DIRECTIVES = ("language_level=3,binding=True,boundscheck=False,wraparound=False,initializedcheck=False,"
              "cdivision=True,auto_pickle=False")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
LEFT_OUT = shutil.ignore_patterns(".git", "build", "dist", "__pycache__", ".*_cache", "*.so", "*.egg-info", ".venv")


def command(tree, *arguments, timeout=None):
    """Run in the tree's root, with its own fastloop; (exit status or None after the timeout, what it printed)."""
    process = subprocess.Popen(
        list(map(str, arguments)), cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env={**os.environ, "PYTHONPATH": str(tree)}, start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=timeout)
        return process.returncode, out
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def usual_variant():
    """The instruction set to build where a fault names none."""
    sys.path.insert(0, str(ROOT))
    from fastloop._core import cpu

    return "avx2" if "avx2" in cpu.supported() else "baseline"


def sources(name, folder=ROOT / "csrc"):
    """The files in csrc/ that csrc/<name>, and what it includes, are made of."""
    text = (folder / name).read_text()
    named = re.findall(r'^(?:include|cdef extern from) "([\w/]+\.\w+)"', text, re.MULTILINE)
    return {name, "declarations.pxi"}.union(*(sources(other, folder) for other in named))


def modules_of(variant):
    """What a tree needs that knows this instruction set alone."""
    return ["core", variant, f"{variant}_float32"]


def build(tree, modules, cythonize=True, options=("-O0",)):
    """Build these modules, "core" or an engine, in the tree; raises RuntimeError with what the compiler said."""
    for name in modules:
        c = tree / f"{name}.c"
        steps = [[
            sys.executable, "-m", "cython", "-3", "-I", "csrc", "-I", ".", "-X", DIRECTIVES,
            "--module-name", f"fastloop._core.{name}", f"csrc/{name}.pyx", "-o", c,
        ]] if cythonize else []
        steps.append([
            "gcc", "-shared", "-fPIC", "-fopenmp", *options, "-fno-math-errno", "-fno-trapping-math",
            "-ffp-contract=off", *FLAGS.get(name.removesuffix("_float32"), []),
            *(["-DFL_FLOAT32"] if name.endswith("_float32") else []), "-Icsrc", f"-I{sysconfig.get_path('include')}", c,
            "-o", f"fastloop/_core/{name}{SUFFIX}",
        ])
        for step in steps:
            status, out = command(tree, *step)
            if status != 0:
                raise RuntimeError(out)


def only(tree, variant):
    """Let the tree know this variant and no other: in place of csrc/cpu.pyx, a module that says so."""
    (tree / "fastloop/_core/cpu.py").write_text(f"compiler = 'gcc'\n\n\ndef supported():\n    return [{variant!r}]\n")


def likely(stem):
    """The tests most likely to notice a fault in this file."""
    return [f"test_{name}.py" for name in FIRST.get(stem, stem).split()]


def first_failure(tree, tests, others=True):
    """Run the tests of these files, then all the others if asked for, until one fails; what failed, or None."""
    # At -O0 the examples take minutes, and they say little that the other tests do not.
    files = sorted(path.name for path in (tree / "tests").glob("test_*.py") if path.stem != "test_examples")
    tests = [name for name in tests if (tree / "tests" / name).exists()]
    for names in (tests, [name for name in files if name not in tests] if others else []):
        if names:
            pytest = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-rfE"]
            status, out = command(tree, *pytest, *(f"tests/{name}" for name in names), timeout=TIMEOUT)
            if status == 0:
                continue
            if status is None:
                return "a hang"
            failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.*?)(?: - .*)?$", out, re.MULTILINE)
            if failed:
                return failed[1]
            if "Fatal Python error" in out or status < 0:
                return f"a crash ({signal.Signals(-status).name if status < 0 else 'fatal error'})"
            return out.strip().splitlines()[-1] if out.strip() else f"exit status {status}"
    return None


def plant(sound, work, quick, number, fault):
    """Plant one fault in a copy of the sound tree, build, test; (caught by, seconds)."""
    file, old, new, variant, test = fault
    began = time.perf_counter()
    tree = work / f"fault{number}"
    shutil.copytree(sound, tree)
    path = tree / file
    path.write_text(path.read_text().replace(old, new))
    only(tree, variant)
    try:
        if file.startswith("csrc"):
            modules = [name for name in modules_of(variant) if file.removeprefix("csrc/") in sources(f"{name}.pyx")]
            build(tree, modules, cythonize=path.suffix != ".h")
        if test:
            caught = first_failure(tree, [test], others=False)
        else:
            caught = first_failure(tree, likely(path.stem), not quick and variant == usual_variant())
    except RuntimeError as error:
        caught = None
        print(f"{file}: the fault does not compile, so it says nothing:\n{error}", file=sys.stderr)
    shutil.rmtree(tree)
    return caught, time.perf_counter() - began


def list_of(fault):
    """The name of the list that a fault is from."""
    return "faults" if fault[4] else fault[0].split("/")[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=LISTS, help="faults of this list only")
    parser.add_argument("--match", default="", help="faults whose file or old text contains this")
    parser.add_argument("--quick", action="store_true", help="only the tests most likely to notice: a lower bound")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (default 1)")
    args = parser.parse_args()

    usual = usual_variant()
    from fastloop._core import cpu

    faults = [(f"{folder}/{file}", old, new, isa[0] if isa else usual, None)
              for folder in ("csrc", "fastloop") for file, old, new, *isa in LISTS[folder]]
    faults += [(file, old, new, usual, f"faults/test_{name}.py") for name, file, old, new in FAULTS]
    stale = [(file, old) for file, old, *_ in faults if (ROOT / file).read_text().count(old) != 1]
    for file, old in stale:
        print(f"{file} holds {(ROOT / file).read_text().count(old)} times, instead of once: {old}", file=sys.stderr)
    if stale:
        return 2
    chosen = [fault for fault in faults if args.match in fault[0] + fault[1]
              and args.only in (None, list_of(fault)) and fault[3] in cpu.supported()]

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        work, sound = Path(work), Path(work, "sound")
        shutil.copytree(ROOT, sound, ignore=LEFT_OUT)
        for variant in sorted({fault[3] for fault in chosen}):
            build(sound, modules_of(variant))
            only(sound, variant)
            others = not args.quick and variant == usual and args.only != "faults"
            tests = {fault[4] for fault in chosen if fault[4]} if variant == usual else ()
            failed = first_failure(sound, [*likely("simd"), *sorted(tests)], others)
            if failed:
                print(f"the sound tree fails with {variant}: {failed}", file=sys.stderr)
                return 2
        print(f"the sound tree passes ({time.perf_counter() - began:.0f} s)", flush=True)

        survivors = []
        with ThreadPoolExecutor(args.jobs) as pool:
            results = pool.map(lambda item: plant(sound, work, args.quick, *item), enumerate(chosen))
            for fault, (caught, seconds) in zip(chosen, results, strict=True):
                file, old, new, variant, _ = fault
                text = (ROOT / file).read_text()
                line = text[: text.index(old)].count("\n") + 1
                what = " ".join(f"{old!r} -> {new!r}".split())
                isa = "" if variant == usual else f" ({variant})"
                row = f"{file}:{line}{isa}  {what}\n    {caught or 'SURVIVED'}  {seconds:.0f} s"
                print(row, flush=True)
                if not caught:
                    survivors.append((list_of(fault), row))

    for name in LISTS:
        planted = sum(list_of(fault) == name for fault in chosen)
        missed = sum(of == name for of, _ in survivors)
        if planted:
            print(f"{name}: {planted - missed} of {planted} faults caught, {1 - missed / planted:.1%}")
    if len(chosen) < len(faults):
        print(f"{len(faults) - len(chosen)} faults were not planted (--only, --match, or not this CPU's)")
    print(f"{time.perf_counter() - began:.0f} s; survivors:", *[row for _, row in survivors] or ["none"], sep="\n")
    return 0 if len(survivors) <= (1.0 - ENOUGH) * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
