"""scikit-learn's own tests of its MLP, from its wheel, with fastloop's classes in place of its own."""

import importlib

import pytest

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")
own = pytest.importorskip("sklearn.neural_network.tests.test_mlp", reason="this scikit-learn comes without its tests")

from fastloop import sklearn as fastloop_sklearn  # noqa: E402

own = importlib.reload(own)
own.MLPClassifier, own.MLPRegressor = fastloop_sklearn.MLPClassifier, fastloop_sklearn.MLPRegressor
globals().update({name: test for name, test in vars(own).items() if name.startswith("test_")})
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def global_random_seed():
    """What scikit-learn's own configuration of pytest provides."""
    return 42
