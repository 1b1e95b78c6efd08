"""Fitting y = 2x by hand in NumPy and with fastloop, side by side; and what a learning rate too large does."""

import numpy as np

import fastloop as fl

X = np.array([1.0, 2.0, 3.0, 4.0])
y = 2.0 * X


def by_hand(lr, steps):
    w, b = 0.0, 0.0
    for _ in range(steps):
        error = w * X + b - y               # predict
        dw, db = 2 * np.mean(error * X), 2 * np.mean(error)     # the gradient of the mean squared error
        w, b = w - lr * dw, b - lr * db     # update
    return w, b


def with_fastloop(lr, steps):
    model = fl.LinearRegression(1, init_std=0.0)
    trainer = fl.Trainer(model, fl.SGD(lr=lr))
    history = trainer.fit(X, y, steps=steps, batch_size=len(X))
    return model, history


w, b = by_hand(lr=0.01, steps=2000)
model, history = with_fastloop(lr=0.01, steps=2000)
print(f"by hand   w {w:.6f}  b {b:.6f}")
weight, bias = (float(array.squeeze()) for array in model.params.values())
print(f"fastloop  w {weight:.6f}  b {bias:.6f}  loss {history.loss[0]:.3f} -> {history.loss[-1]:.2e}")
print(f"prediction for x = 10: {float(np.squeeze(model.predict(np.array([10.0])))):.3f}")

# With lr 1.0 every step overshoots further.  NumPy goes on to nan; fastloop stops before the parameters are touched.
with np.errstate(all="ignore"):
    print("by hand with lr 1.0:", by_hand(lr=1.0, steps=2000))
try:
    with_fastloop(lr=1.0, steps=2000)
except fl.DivergenceError as error:
    print("fastloop with lr 1.0:", error)
