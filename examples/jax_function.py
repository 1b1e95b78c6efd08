"""A JAX function under the Trainer, beside a loop in JAX alone: the same losses.

JAX gives loss and gradients; the order of the rows, Adam, clipping, validation, checkpoints are fastloop's.
"""

import jax
import jax.numpy as jnp
import numpy as np

import fastloop as fl

jax.config.update("jax_enable_x64", True)


@jax.jit
@jax.value_and_grad
def loss(params, X, y, weights):
    hidden = jnp.tanh(X @ params["w1"] + params["b1"])
    return weights @ (hidden @ params["w2"] - y) ** 2


rng = np.random.default_rng(0)
X = rng.normal(size=(200, 4))
y = np.sin(X[:, 0]) * X[:, 1]
start = {"w1": rng.normal(0, 0.5, (4, 16)), "b1": np.zeros(16), "w2": rng.normal(0, 0.5, 16)}

trainer = fl.Trainer(fl.FunctionModel(start, loss), fl.Adam(lr=0.01))
history = trainer.fit(X, y, steps=300, batch_size=20)


@jax.jit
def step(t, params, m, v, X, y):
    value, g = loss(params, X, y, jnp.full(len(X), 1 / len(X)))
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
    params = jax.tree.map(
        lambda p, m, v: p - 0.01 * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8), params, m, v
    )
    return value, params, m, v


params, m, v = start, *(jax.tree.map(np.zeros_like, start) for _ in range(2))
losses = []
for t in range(300):
    rows = np.arange(20 * t, 20 * t + 20) % 200
    value, params, m, v = step(float(t + 1), params, m, v, X[rows], y[rows])
    losses.append(float(value))
difference = np.abs(history.loss - losses).max()
print(f"loss {history.loss[0]:.3f} -> {history.loss[-1]:.3f}, apart by at most {difference:.0e}")
assert difference < 1e-9
