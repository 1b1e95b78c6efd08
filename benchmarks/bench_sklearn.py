"""fastloop.sklearn's fit beside scikit-learn's, from the same seed.

Digits (1,797 rows of 64), rows of 10 for a regression, and rows of 784, as large images have.  Checked first: the same
coefficients after three epochs.  Milliseconds a fit of twenty epochs (of rows of 784: three), everything included that
scikit-learn does around it.
"""

import warnings

import harness
import numpy as np
import sklearn
from sklearn import datasets
from sklearn import neural_network as theirs
from sklearn.exceptions import ConvergenceWarning

import fastloop as fl
from fastloop import sklearn as ours

# In float32 Adam turns the rounding of a gradient near 0 into a step of up to lr.
ATOL = {"float64": 1e-9, "float32": 5e-2}
CHECKED, EPOCHS, EPOCHS_OF_IMAGES = 3, 20, 3
SHAPES = [      # hidden widths, batch, data
    ((100,), 200, "digits"), ((32,), 32, "digits"), ((64, 64), 32, "digits"), ((50,), 200, "regression"),
    ((256,), 128, "images"), ((512, 256), 128, "images"),
]


def data(name, dtype):
    if name == "digits":
        X, y = datasets.load_digits(return_X_y=True)
        return (X / 16).astype(dtype), y
    rng = np.random.default_rng(0)
    if name == "regression":
        X = rng.normal(size=(2000, 10)).astype(dtype)
        return X, (X[:, 0] * X[:, 1] + X[:, 2]).astype(dtype)
    return rng.uniform(size=(2000, 784)).astype(dtype), rng.integers(10, size=2000)


def measure(report, hidden, batch, name, dtype):
    X, y = data(name, dtype)
    kind = "MLPRegressor" if name == "regression" else "MLPClassifier"
    options = {"hidden_layer_sizes": hidden, "batch_size": batch, "max_iter": CHECKED, "random_state": 0, "tol": 0.0}
    made = {"fastloop": getattr(ours, kind), "scikit-learn": getattr(theirs, kind)}
    fitted = {way: cls(**options).fit(X, y) for way, cls in made.items()}
    for a, b in zip(*(estimator.coefs_ for estimator in fitted.values()), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ATOL[dtype])
    options["max_iter"] = epochs = EPOCHS_OF_IMAGES if name == "images" else EPOCHS
    seconds = report.measure({
        way: harness.repeat(lambda cls=cls: cls(**options).fit(X, y)) for way, cls in made.items()
    })
    return {
        "widths": "-".join(map(str, (X.shape[1], *hidden, fitted["fastloop"].n_outputs_))), "batch": batch,
        "rows": len(X), "epochs": epochs, "seconds": seconds,
        "scikit-learn / fastloop": seconds["scikit-learn"] / seconds["fastloop"],
    }


def main():
    args = harness.arguments(__doc__.splitlines()[0])
    fl.set_num_threads(args.threads)
    report = harness.Report("bench_sklearn", args, {"scikit-learn": sklearn}, seconds=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        rows = [measure(report, *shape, args.dtype) for shape in SHAPES[: 2 if args.quick else None]]
    report.table("A fit: milliseconds (in brackets, times fastloop's)", rows, unit="ms")
    report.close()


if __name__ == "__main__":
    main()
