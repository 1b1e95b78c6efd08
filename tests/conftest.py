"""Fixtures that several test files share."""

import importlib

import pytest

from fastloop import _core, kernels


@pytest.fixture(params=_core.supported)
def variant(request, monkeypatch):
    """Each compiled variant that this CPU can run; fastloop.kernels calls it for the length of the test."""
    module = importlib.import_module(f"fastloop._core.{request.param}")
    monkeypatch.setattr(kernels, "variant", module)
    return module
