"""Two models of one's own in NumPy under the Trainer, each beside a plain NumPy loop: the same losses.

Logistic regression on rows (X, y), and an autoencoder, which has no y.
"""

import numpy as np

import fastloop as fl
from fastloop.reference import adam_step


class Logistic(fl.Model):
    """p = sigmoid(X w + b), cross-entropy in nats."""

    def __init__(self, n_in):
        super().__init__({"w": (n_in,), "b": ()}, seed=0, init_std=0.1)

    def forward(self, X, y, weights):
        self.X, z = X, X @ self.params["w"] + self.params["b"]
        self.dz = weights * (1 / (1 + np.exp(-z)) - y)
        return weights @ (np.logaddexp(0, z) - y * z)

    def backward(self):
        self.grads["w"] += self.dz @ self.X
        self.grads["b"] += self.dz.sum()


class Autoencoder(fl.Model):
    """X, through a narrow layer, as X again: the mean squared error."""

    def __init__(self, n_in, n_hidden):
        super().__init__({"down": (n_in, n_hidden), "up": (n_hidden, n_in)}, seed=0, init_std=0.3)

    def forward(self, X, y, weights):
        self.X, self.h = X, np.tanh(X @ self.params["down"])
        d = self.h @ self.params["up"] - X
        self.dout = 2 * weights[:, None] * d / X.shape[1]
        return weights @ (d * d).mean(axis=1)

    def backward(self):
        self.grads["up"] += self.h.T @ self.dout
        self.grads["down"] += self.X.T @ (self.dout @ self.params["up"].T * (1 - self.h**2))


def by_hand(model, X, y, steps, batch):
    """The same training as a loop of one's own, over flat arrays."""
    params, grads, (m, v), losses = model.params.flat, model.grads.flat, np.zeros((2, model.num_params)), []
    for step in range(steps):
        rows = np.arange(step * batch, (step + 1) * batch) % len(X)
        grads[:] = 0
        losses.append(model.forward(X[rows], None if y is None else y[rows], np.full(batch, 1 / batch)))
        model.backward()
        adam_step(grads, params, m, v, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, t=step + 1)
    return losses


rng = np.random.default_rng(1)
X = rng.normal(size=(200, 5))
y = (X[:, 0] + X[:, 1] > 0.3).astype(float)
for name, make, target in (("logistic", lambda: Logistic(5), y), ("autoencoder", lambda: Autoencoder(5, 3), None)):
    history = fl.Trainer(make(), fl.Adam(lr=0.01)).fit(X, target, steps=500, batch_size=20)
    difference = np.abs(history.loss - by_hand(make(), X, target, 500, 20)).max()
    print(f"{name}: loss {history.loss[0]:.3f} -> {history.loss[-1]:.3f}, apart by at most {difference:.0e}")
    assert difference < 1e-12
