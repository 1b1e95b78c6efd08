# The engine of float32: the names of baseline.pyi.

from .baseline import *  # noqa: F403
