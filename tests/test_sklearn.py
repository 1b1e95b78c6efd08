"""fastloop.sklearn beside scikit-learn: the same coefficients, attributes and behaviour, and what is offered beyond."""

import copy
import inspect
import io
import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest

import fastloop as fl

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn import neural_network as theirs  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import make_multilabel_classification  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from fastloop import sklearn as ours  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(157, 6))
SCORE = X @ RNG.normal(size=(6, 4)) + 0.5 * RNG.normal(size=(157, 4))
JOBS = {
    "two classes": ("MLPClassifier", np.where(SCORE[:, 0] > 0, "yes", "no"), {}),
    "four classes": ("MLPClassifier", SCORE.argmax(axis=1) * 10, {}),
    "many labels": ("MLPClassifier", (SCORE > 0.3).astype(int), {}),
    "one output": ("MLPRegressor", SCORE[:, 0], {}),
    "several outputs": ("MLPRegressor", SCORE, {}),
    "counts": ("MLPRegressor", np.floor(np.exp(0.3 * SCORE[:, 0])), {"loss": "poisson"}),
}
SOLVERS = {
    "adam": {"solver": "adam"},
    "adam, other betas": {"solver": "adam", "beta_1": 0.7, "beta_2": 0.95, "epsilon": 1e-4, "learning_rate_init": 0.01},
    "sgd": {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.02},
    "momentum": {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.02},
    "nesterov": {"solver": "sgd", "learning_rate_init": 0.02},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.02, "tol": 0.1,
                 "n_iter_no_change": 2},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.05},
    "lbfgs": {"solver": "lbfgs"},
}
SHARED = {"hidden_layer_sizes": (9, 5), "batch_size": 20, "max_iter": 20, "random_state": 3}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def both(job, **options):
    """Our estimator and scikit-learn's, and y."""
    name, y, more = JOBS[job]
    options = {**SHARED, **more, **options}
    return getattr(ours, name)(**options), getattr(theirs, name)(**options), y


def assert_same(a, b, tolerance=1e-9):
    for mine, other in zip([*a.coefs_, *a.intercepts_], [*b.coefs_, *b.intercepts_], strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance)
    assert (a.n_iter_, a.t_, a.n_layers_, a.n_outputs_, a.out_activation_, a.n_features_in_) == (
        b.n_iter_, b.t_, b.n_layers_, b.n_outputs_, b.out_activation_, b.n_features_in_)
    for name in ("loss_", "best_loss_", "best_validation_score_"):
        one, two = getattr(a, name, None), getattr(b, name, None)
        assert (one is None) == (two is None)
        assert one is None or one == pytest.approx(two, rel=100 * tolerance)
    for name in ("loss_curve_", "validation_scores_"):
        one, two = getattr(a, name, None), getattr(b, name, None)
        assert (one is None) == (two is None)
        if one is not None:
            np.testing.assert_allclose(one, two, rtol=100 * tolerance, atol=tolerance)


# --- the same results

@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("job", JOBS)
def test_twenty_epochs_give_scikit_learns_coefficients(job, solver, activation):
    mine, other, y = both(job, activation=activation, **SOLVERS[solver])
    mine.fit(X, y)
    other.fit(X, y)
    assert_same(mine, other, 1e-6 if solver == "lbfgs" else 1e-9)
    np.testing.assert_allclose(mine.score(X, y), other.score(X, y), rtol=1e-9)
    if hasattr(other, "classes_"):
        assert np.array_equal(mine.classes_, other.classes_)
        np.testing.assert_allclose(mine.predict_proba(X), other.predict_proba(X), atol=1e-6)
        with np.errstate(divide="ignore"):
            logs = mine.predict_log_proba(X), other.predict_log_proba(X)
        np.testing.assert_allclose(*logs, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("options", [
    {"alpha": 0.0}, {"alpha": 3.0}, {"batch_size": "auto"}, {"batch_size": 1, "max_iter": 3}, {"batch_size": 157},
    {"shuffle": False}, {"hidden_layer_sizes": ()}, {"hidden_layer_sizes": 7}, {"hidden_layer_sizes": (70, 33, 4)},
    {"early_stopping": True}, {"early_stopping": True, "n_iter_no_change": 1, "validation_fraction": 0.3, "tol": 0.05},
    {"tol": 0.5, "n_iter_no_change": 1}, {"random_state": np.random.RandomState(5)}, {"learning_rate_init": 0.3},
], ids=str)
@pytest.mark.parametrize("solver", ["adam", "adaptive"])
@pytest.mark.parametrize("job", ["two classes", "four classes", "several outputs"])
def test_every_option_does_what_scikit_learns_does(job, solver, options):
    options = {**SOLVERS[solver], **options}
    mine, _, y = both(job, **copy.deepcopy(options))
    _, other, _ = both(job, **copy.deepcopy(options))
    mine.fit(X, y)
    other.fit(X, y)
    assert_same(mine, other, 1e-7 if options.get("learning_rate_init") == 0.3 else 1e-9)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("job", JOBS)
def test_sample_weights_weigh_as_scikit_learns(job, early_stopping):
    weights = np.random.default_rng(1).uniform(0.1, 5.0, len(X))
    weights[::9] = 0.0
    mine, other, y = both(job, early_stopping=early_stopping, batch_size=47)     # no batch of weights that are all 0
    mine.fit(X, y, sample_weight=weights)
    other.fit(X, y, sample_weight=weights)
    assert_same(mine, other)


@pytest.mark.parametrize("solver", ["adam", "nesterov", "invscaling", "adaptive"])
@pytest.mark.parametrize("job", JOBS)
def test_partial_fit_and_warm_start_go_on_as_scikit_learns(job, solver):
    mine, other, y = both(job, **SOLVERS[solver])
    known = {"classes": np.unique(y) if y.ndim == 1 else np.arange(4)} if JOBS[job][0] == "MLPClassifier" else {}
    for first in range(0, 150, 30):
        some = slice(first, first + 30)
        for estimator in (mine, other):
            estimator.partial_fit(X[some], y[some], **(known if first == 0 else {}))
        assert_same(mine, other)
        mine = pickle.loads(pickle.dumps(mine))
    mine, other, y = both(job, warm_start=True, max_iter=5, **SOLVERS[solver])
    for _ in range(3):
        mine.fit(X, y)
        other.fit(X, y)
    assert_same(mine, other)


def test_a_partial_fit_never_warns_of_the_largest_number_of_epochs():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.MLPRegressor(max_iter=1).partial_fit(X, SCORE)


@pytest.mark.parametrize("solver", ["adam", "nesterov"])
@pytest.mark.parametrize("job", JOBS)
def test_float32_stays_float32_and_near_scikit_learns(job, solver):
    mine, other, y = both(job, **SOLVERS[solver])
    y = y.astype(np.float32) if y.dtype.kind == "f" else y
    mine.fit(X.astype(np.float32), y)
    other.fit(X.astype(np.float32), y)
    assert {c.dtype for c in mine.coefs_ + mine.intercepts_} == {np.dtype(np.float32)}
    assert_same(mine, other, 2e-4)


def test_random_settings_give_scikit_learns_coefficients():
    rng = np.random.default_rng(7)
    for _ in range(60):
        job = rng.choice(list(JOBS))
        options = {
            "activation": str(rng.choice(["relu", "tanh", "logistic", "identity"])),
            "hidden_layer_sizes": tuple(int(n) for n in rng.integers(1, 40, rng.integers(0, 4))),
            "alpha": float(rng.choice([0.0, 1e-4, 0.1])), "batch_size": int(rng.integers(1, 141)),
            "max_iter": int(rng.integers(1, 8)), "shuffle": bool(rng.integers(2)),
            "random_state": int(rng.integers(99)), "early_stopping": bool(rng.integers(2)),
            **SOLVERS[str(rng.choice([s for s in SOLVERS if s != "lbfgs"]))],
        }
        mine, other, y = both(job, **options)
        weights = rng.uniform(0.5, 2.0, len(X)) if rng.integers(2) else None
        mine.fit(X, y, sample_weight=weights)
        other.fit(X, y, sample_weight=weights)
        assert_same(mine, other, 1e-8)


def test_the_bits_are_the_same_at_any_number_of_threads(many_threads):
    for job in JOBS:
        found = set()
        for n in (1, 2, 3):
            fl.set_num_threads(n)
            mine, _, y = both(job, max_iter=3)
            mine.fit(X, y)
            found.add(b"".join(c.tobytes() for c in mine.coefs_))
        assert len(found) == 1


# --- scikit-learn's own ways

@parametrize_with_checks([ours.MLPClassifier(max_iter=100), ours.MLPRegressor(max_iter=100)])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks_of_estimators(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_the_arguments_are_scikit_learns_with_their_defaults(name):
    mine, other = (inspect.signature(getattr(module, name)).parameters for module in (ours, theirs))
    assert {k: (v.default, v.kind) for k, v in mine.items() if k in other} == {
        k: (v.default, v.kind) for k, v in other.items()}
    assert list(mine)[: len(other)] == list(other)
    assert issubclass(getattr(ours, name), getattr(theirs, name))


def test_pipelines_searches_scores_clones_and_pickles():
    y = JOBS["four classes"][1]
    pipeline = make_pipeline(StandardScaler(), ours.MLPClassifier(**SHARED))
    search = GridSearchCV(pipeline, {"mlpclassifier__alpha": [1e-4, 1.0]}, cv=2, n_jobs=2).fit(X, y)
    assert search.best_score_ > 0.4
    scores = cross_val_score(ours.MLPClassifier(**SHARED), X, y, cv=3)
    assert scores.tolist() == cross_val_score(theirs.MLPClassifier(**SHARED), X, y, cv=3).tolist()
    fitted = ours.MLPClassifier(**SHARED, class_weight="balanced").fit(X, y)
    assert clone(fitted).get_params() == fitted.get_params()
    twin = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(twin.predict_proba(X), fitted.predict_proba(X))
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(fitted, file)
    file.seek(0)
    assert np.array_equal(joblib.load(file).predict(X), fitted.predict(X))


def test_pandas_frames_with_names():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    y = pandas.Series(JOBS["two classes"][1])
    mine, other = ours.MLPClassifier(**SHARED).fit(frame, y), theirs.MLPClassifier(**SHARED).fit(frame, y)
    assert_same(mine, other)
    assert mine.feature_names_in_.tolist() == list("abcdef")
    with pytest.warns(UserWarning, match="feature names"):
        mine.predict(X)


def test_sparse_X_trains_as_scikit_learns():
    scipy = pytest.importorskip("scipy.sparse")
    mine, other, y = both("four classes")
    mine.fit(scipy.csr_matrix(X), y)
    other.fit(scipy.csr_matrix(X), y)
    assert_same(mine, other)


def test_many_labels_of_scikit_learns_making():
    data, y = make_multilabel_classification(n_samples=80, random_state=0)
    options = {"hidden_layer_sizes": 10, "max_iter": 30, "random_state": 1}
    mine, other = ours.MLPClassifier(**options).fit(data, y), theirs.MLPClassifier(**options).fit(data, y)
    assert_same(mine, other, 1e-8)
    assert np.array_equal(mine.predict(data), other.predict(data))


def test_what_is_not_finite_is_refused_and_the_weights_stay_finite():
    mine = ours.MLPRegressor(solver="sgd", learning_rate_init=0.5, **SHARED)
    with pytest.raises(ValueError, match=r"Solver produced non-finite parameter weights.*Step \d+ would have"):
        mine.fit(X, 1e200 * SCORE[:, 0])
    assert all(np.isfinite(c).all() for c in mine.coefs_)
    mine.set_params(early_stopping=True)
    with pytest.warns(ConvergenceWarning, match="The training has ended"):
        mine.fit(X, 1e200 * SCORE[:, 0])
    assert np.isnan(mine.validation_scores_[-1])


# --- beyond scikit-learn

def test_class_weights_multiply_the_rows_weights():
    y = JOBS["four classes"][1]
    given = {0: 1.0, 10: 3.0, 20: 0.5, 30: 2.0}
    by_hand = np.array([given[label] for label in y])
    for extra in (None, RNG.uniform(0.5, 2.0, len(y))):
        weights = by_hand if extra is None else by_hand * extra
        mine = ours.MLPClassifier(**SHARED, class_weight=given).fit(X, y, sample_weight=extra)
        assert_same(mine, theirs.MLPClassifier(**SHARED).fit(X, y, sample_weight=weights))
    balanced = ours.MLPClassifier(**SHARED, class_weight="balanced").fit(X, y)
    counts = {label: (y == label).sum() for label in given}
    weights = np.array([len(y) / (4 * counts[label]) for label in y])
    assert_same(balanced, theirs.MLPClassifier(**SHARED).fit(X, y, sample_weight=weights))
    with pytest.raises(ValueError, match="class_weight = 'balanced' depends on all of y"):
        ours.MLPClassifier(class_weight="balanced").partial_fit(X, y, classes=sorted(given))


def test_callbacks_see_every_epoch_and_may_stop():
    seen = []

    def watch(estimator):
        seen.append((estimator.n_iter_, estimator.loss_, estimator.score(X, SCORE)))
        return len(seen) == 4

    mine = ours.MLPRegressor(**SHARED, callbacks=[watch]).fit(X, SCORE)
    assert mine.n_iter_ == 4
    other = theirs.MLPRegressor(**{**SHARED, "max_iter": 4}).fit(X, SCORE)
    assert_same(mine, other)
    assert [n for n, *_ in seen] == [1, 2, 3, 4]
    assert seen[-1][1:] == (mine.loss_, mine.score(X, SCORE))


def test_the_validation_loss_is_that_of_the_held_out_rows():
    from sklearn.metrics import log_loss
    from sklearn.model_selection import train_test_split

    y = JOBS["four classes"][1]
    mine = ours.MLPClassifier(**{**SHARED, "max_iter": 1}, early_stopping=True).fit(X, y)
    state = np.random.RandomState(SHARED["random_state"])
    sizes = [6, 9, 5, 4]
    for n_in, n_out in pairwise(sizes):     # the draws of the initial weights
        state.uniform(size=(n_in, n_out))
        state.uniform(size=n_out)
    _, held_X, _, held_y = train_test_split(X, y, random_state=state, test_size=0.1)
    assert mine.validation_loss_curve_ == pytest.approx([log_loss(held_y, mine.predict_proba(held_X))], rel=1e-9)


@pytest.mark.parametrize("solver", ["adam", "nesterov"])
def test_a_checkpoint_goes_on_with_the_moments(solver, tmp_path):
    path = tmp_path / "mlp.pickle"
    options = {**SHARED, **SOLVERS[solver], "shuffle": False}
    whole = ours.MLPRegressor(**{**options, "max_iter": 9}).fit(X, SCORE)
    ours.MLPRegressor(**{**options, "max_iter": 4}, checkpoint=path).fit(X, SCORE)
    half = pickle.loads(path.read_bytes())
    assert half.n_iter_ == 4
    half.set_params(warm_start=True, reset_optimizer=False, max_iter=5, checkpoint=None).fit(X, SCORE)
    for a, b in zip(half.coefs_, whole.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    assert len(half.loss_curve_) == 9
