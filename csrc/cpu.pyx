"""The instruction sets of the running CPU; imported before any variant, so built for the baseline."""
# Uses: cpu.h.

cdef extern from "cpu.h":
    int fl_has_avx2()
    int fl_has_avx512()
    const char *FL_COMPILER

compiler = FL_COMPILER.decode().strip()


def supported():
    """The variants that this CPU can run, best first."""
    names = []
    if fl_has_avx512():
        names.append("avx512")
    if fl_has_avx2():
        names.append("avx2")
    names.append("baseline")
    return names
