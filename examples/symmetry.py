"""Why weights start at random: with equal weights every hidden unit gets the same gradient, and stays the same."""

import numpy as np

import fastloop as fl

rng = np.random.default_rng(0)
X = rng.normal(size=(64, 2))
y = X[:, :1] * X[:, 1:]


def train(equal):
    model = fl.MLP([2, 8, 1], activation="tanh", seed=1)
    if equal:
        for array in model.params.values():
            array[...] = 0.5
    history = fl.Trainer(model, fl.Adam(lr=0.01)).fit(X, y, steps=2000, batch_size=64)
    units = len(np.unique(model.params["layer0.weight"], axis=0))
    print(f"{units} different hidden units, loss {history.loss[0]:.3f} -> {history.loss[-1]:.4f}")


print("equal start: ", end="")
train(equal=True)
print("random start:", end=" ")
train(equal=False)
