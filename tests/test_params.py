"""The flat buffer and its named views."""

import numpy as np
import pytest

from fastloop import Params

SHAPES = {"wte": (5, 3), "bias": (7,), "scale": ()}


def test_the_views_are_the_buffer_in_order():
    params = Params(SHAPES)
    params.flat[:] = np.arange(23.0)
    np.testing.assert_array_equal(params["wte"], np.arange(15.0).reshape(5, 3))
    np.testing.assert_array_equal(params["bias"], np.arange(15.0, 22.0))
    assert params["scale"] == 22.0
    params["bias"][...] = -1.0
    params["wte"] = np.ones((5, 3))
    assert params.flat.tolist() == [1.0] * 15 + [-1.0] * 7 + [22.0]
    assert list(params) == list(SHAPES)
    assert len(params) == 3
    assert repr(params) == "Params(wte (5, 3), bias (7,), scale ())"


@pytest.mark.parametrize("n", [1, 7, 8, 992, 100_001])
def test_the_buffer_begins_at_a_cache_line(n):
    buffers = [Params({"w": (n,)}).flat for _ in range(20)]      # all alive, so that no address comes twice
    assert {flat.ctypes.data % 64 for flat in buffers} == {0}
    assert not any(flat.any() for flat in buffers)


@pytest.mark.parametrize("value", [1.0, np.ones(3), np.ones((1, 3)), np.ones((5, 1)), np.ones((3, 5))])
def test_a_value_of_another_shape_is_refused_even_where_numpy_would_stretch_it(value):
    params = Params(SHAPES)
    with pytest.raises(ValueError, match=r"wte has shape \(5, 3\), got \("):
        params["wte"] = value
    assert not params.flat.any()


def test_an_unknown_name_is_answered_with_the_known_ones():
    params = Params(SHAPES)
    with pytest.raises(KeyError, match="'wpe' is not one of wte, bias, scale"):
        params["wpe"]
    with pytest.raises(KeyError, match="'wpe'"):
        params["wpe"] = 0.0
