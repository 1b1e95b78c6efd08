"""A NumPy model of your own, with fastloop's Adam: in place, one compiled pass over each array."""

import numpy as np

import fastloop as fl

rng = np.random.default_rng(0)
X = rng.normal(size=(200, 3))
y = (X[:, 0] * X[:, 1] > 0).astype(float)         # not linear: a hidden layer is needed

w1, b1 = rng.normal(0, 0.5, (3, 16)), np.zeros(16)
w2, b2 = rng.normal(0, 0.5, 16), np.zeros(1)
opt = fl.Adam(params=[w1, b1, w2, b2], lr=0.02)

for step in range(501):
    h = np.tanh(X @ w1 + b1)
    p = 1 / (1 + np.exp(-(h @ w2 + b2[0])))
    loss = -np.mean(np.where(y == 1, np.log(p), np.log1p(-p)))
    dz = (p - y) / len(y)
    dh = np.outer(dz, w2) * (1 - h * h)
    opt.step([X.T @ dh, dh.sum(0), h.T @ dz, dz.sum(keepdims=True)])
    if step % 100 == 0:
        print(f"step {step:3}  loss {loss:.4f}  right {np.mean((p > 0.5) == y):.0%}")
