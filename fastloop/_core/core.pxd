# Where Cython looks for what core.pyx declares.
include "declarations.pxi"
