"""The compiled extensions: one source (csrc/core.pxi), one module for each instruction set.

Everything else about the package is in pyproject.toml.  The switches are environment variables: FASTLOOP_DEBUG=1 builds
with bounds checks, FASTLOOP_OPENMP=0 without OpenMP.
"""

import os
import platform
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

DEBUG = os.environ.get("FASTLOOP_DEBUG") == "1"

# No flag here lets the compiler reorder sums or assume that NaN does not occur, and none contracts a * b + c
# behind our back: where a fused multiply-add is wanted the source says so.
FLAGS = ["-O1" if DEBUG else "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
VARIANTS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    VARIANTS["avx2"] = ["-mavx2", "-mfma"]
    VARIANTS["avx512"] = ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl"]

NO_COMPILER = "fastloop is built from C and found no working C compiler; install one (Debian: gcc, macOS: Xcode's)."


class BuildExt(build_ext):
    """Choose flags for the compiler at hand, and leave a copy of what was built in the source folder.

    The copy lets `python -m fastloop.train` work in the repository root, where the source folder hides the
    installed package.
    """

    def build_extensions(self):
        if not self.accepts([]):
            raise SystemExit(NO_COMPILER)
        gcc_like = self.compiler.compiler_type != "msvc"
        openmp = "-fopenmp" if gcc_like else "/openmp"
        if os.environ.get("FASTLOOP_OPENMP") == "0" or not self.accepts([openmp]):
            openmp = None
        for extension in self.extensions:
            extension.extra_compile_args = FLAGS + extension.extra_compile_args if gcc_like else ["/O2"]
            if openmp:
                extension.extra_compile_args.append(openmp)
                extension.extra_link_args += [openmp] if gcc_like else []
        self.parallel = os.cpu_count()
        super().build_extensions()

    def run(self):
        super().run()
        if not self.inplace:
            self.copy_extensions_to_source()

    def accepts(self, flags):
        """Whether a program builds and links with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text("int main(void) { return 0; }\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
                self.compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=flags)
            except (BaseError, CompileError, LinkError, OSError):
                return False
        return True


def extension(name, flags):
    return Extension(
        f"fastloop._core.{name}",
        [f"csrc/{name}.pyx"],
        include_dirs=["csrc"],
        depends=[str(path) for path in Path("csrc").glob("*.[ph]*")],
        extra_compile_args=flags,
    )


setup(
    ext_modules=cythonize(
        [extension("cpu", [])] + [extension(name, flags) for name, flags in VARIANTS.items()],
        build_dir="build/cython",
        force=True,         # flags come from the environment, which timestamps do not see
        include_path=["csrc"],
        compiler_directives={
            "language_level": 3,
            "binding": True,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": True,
        },
    ),
    cmdclass={"build_ext": BuildExt},
)
