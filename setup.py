"""The compiled extensions: csrc/core.pyx once, and csrc/engine.pxi as one module for each
instruction set and precision.

Everything else about the package is in pyproject.toml.  The switches are environment variables: FASTLOOP_DEBUG=1 builds
with bounds checks and symbols, FASTLOOP_OPENMP=0 without OpenMP.  What was built is kept in build/modules-*,
so the next installation from this folder compiles nothing.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import Cython
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

DEBUG = os.environ.get("FASTLOOP_DEBUG") == "1"

# No flag here lets the compiler reorder sums or assume that NaN does not occur, and none contracts a * b + c
# behind our back: where a fused multiply-add is wanted the source says so.
FLAGS = [*(["-O1", "-g"] if DEBUG else ["-O3", "-g0"]), "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
VARIANTS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    VARIANTS["avx2"] = ["-mavx2", "-mfma"]
    VARIANTS["avx512"] = ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl"]

ENGINES = {name + precision: flags for precision in ("", "_float32") for name, flags in VARIANTS.items()}

DECLARATIONS = Path("fastloop/_core/core.pxd")

# Environment variables that a compiler reads.
ENVIRONMENT = ("CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH", "GCC_EXEC_PREFIX", "SDKROOT",
               "MACOSX_DEPLOYMENT_TARGET", "ARCHFLAGS")
KEPT = 4        # builds

NO_COMPILER = "fastloop is built from C and found no working C compiler; install one (Debian: gcc, macOS: Xcode's)."


class BuildExt(build_ext):
    """Choose flags for the present compiler, and leave a copy of what was built in the source folder.

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
        self.force = True       # what was built with other flags can be newer than its sources
        key = self.key()
        kept = Path("build", f"modules-{key}")
        if not (key and kept.is_dir()):
            self.compile()
            if key and key == self.key():       # or a source changed meanwhile
                self.keep(kept)
            return
        os.utime(kept)          # the latest
        for module in self.modules():
            self.mkpath(os.path.dirname(module))
            self.copy_file(str(kept / os.path.basename(module)), module)

    def compile(self):
        translated = cythonize(
            self.extensions,
            build_dir="build/cython",
            force=True,
            nthreads=os.cpu_count(),
            include_path=["csrc", "."],      # the latter for fastloop/_core/core.pxd
            compiler_directives={
                "language_level": 3,
                "binding": True,
                "boundscheck": DEBUG,
                "wraparound": False,
                "initializedcheck": DEBUG,
                "cdivision": True,
                "auto_pickle": False,       # classes that can be pickled define it themselves
            },
        )
        for extension, c in zip(self.extensions, translated, strict=True):
            extension.sources = c.sources
        super().build_extensions()

    def modules(self):
        return [self.get_ext_fullpath(extension.name) for extension in self.extensions]

    def key(self):
        """A digest of all that the modules are made from and with; None where the compiler does not say what it is."""
        c = self.compiler
        try:
            version = subprocess.run([*c.compiler_so, "--version"], capture_output=True, check=True).stdout
        except (AttributeError, OSError, subprocess.CalledProcessError):
            return None
        parts = [
            version, c.compiler_so, c.linker_so, c.macros, c.libraries, c.library_dirs, self.include_dirs, DEBUG,
            sys.version, Cython.__version__, platform.libc_ver(), platform.node(),
            [os.environ.get(name) for name in ENVIRONMENT],
            [(e.name, e.define_macros, e.extra_compile_args, e.extra_link_args) for e in self.extensions],
            [os.path.basename(module) for module in self.modules()],
            [(str(path), path.read_bytes())
             for path in (Path("setup.py"), DECLARATIONS, *sorted(Path("csrc").rglob("*.*")))],
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def keep(self, folder):
        """Copy the modules to that folder, all of them or none."""
        with tempfile.TemporaryDirectory(dir="build") as temporary, suppress(OSError):
            whole = Path(temporary, "modules")
            whole.mkdir()
            for module in self.modules():
                shutil.copy(module, whole)
            whole.rename(folder)
            for old in sorted(Path("build").glob("modules-*"), key=os.path.getmtime)[:-KEPT]:
                shutil.rmtree(old)

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
        define_macros=[("FL_FLOAT32", None)] if name.endswith("_float32") else [],
        extra_compile_args=flags,
    )


if __name__ == "__main__":      # the processes that translate may import this file
    setup(
        # core holds no loop worth more than -O1.  Those that take longest come first: some are compiled side by side.
        ext_modules=[extension(name, flags) for name, flags in {**ENGINES, "core": ["-O1"], "cpu": []}.items()],
        cmdclass={"build_ext": BuildExt},
    )
