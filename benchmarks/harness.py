"""What all benchmarks share: arguments, the header, alternating timings, tables.  What is timed is not here."""

import argparse
import ctypes
import gc
import importlib
import json
import math
import os
import platform
import statistics
import sys
import time
from datetime import date
from importlib.metadata import version

# What the libraries read when they load: OpenMP, OpenBLAS and MKL under NumPy and SciPy, Numba, XLA, fastloop.
THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC", "FASTLOOP_NUM_THREADS",
)

DTYPES = ("float64", "float32")
UNITS = {"us": 1e6, "ms": 1e3}      # how many a second has


def arguments(description, dtypes=DTYPES, **flags):
    """The parsed command line; dtypes: the choices of --dtype, the first is the default; flags: name -> help of further
    switches, or a dict for add_argument.

    Runs the script anew where the environment does not say --threads yet: NumPy's BLAS reads it once, at import.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="for fastloop and every peer (default 1)")
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0], help=f"of all of them (default {dtypes[0]})")
    parser.add_argument("--quick", action="store_true", help="few shapes and short timings: does it run?")
    parser.add_argument("--json", metavar="FILE", help="write everything measured to FILE")
    for name, flag in flags.items():
        parser.add_argument(f"--{name}", **(flag if isinstance(flag, dict) else {"action": "store_true", "help": flag}))
    args = parser.parse_args()
    wanted = dict.fromkeys(THREADS, str(args.threads))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})
    return args


def peers(args):
    """The frameworks to compare with, name -> module, None where missing; each set to args' threads and dtype."""
    found = {}
    for name in ("torch", "numba", "jax"):
        try:
            found[name] = importlib.import_module(name)
        except ImportError:
            found[name] = None
    if found["torch"]:
        found["torch"].set_num_threads(args.threads)
    if found["jax"]:
        found["jax"].config.update("jax_enable_x64", args.dtype == "float64")
        found["jax"].config.update("jax_cpu_enable_async_dispatch", False)    # a third of a short call's time
    return found


def cores():
    """The CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_model():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Report:
    """Prints the header at once and tables as they come; `close` writes the JSON file."""

    def __init__(self, title, args, found, seconds=0.1):
        import fastloop as fl

        self.args, self.tables = args, []
        self.rounds, self.seconds = (3, 0.01) if args.quick else (7, seconds)
        versions = {"python": platform.python_version(), "numpy": version("numpy"), "fastloop": fl.__version__}
        versions |= {name: version(name) if module else "missing" for name, module in found.items()}
        self.header = {
            "benchmark": title,
            "date": date.today().isoformat(),
            "cpu": f"{cpu_model()}, {cores()} cores",
            "threads": args.threads,
            "dtype": args.dtype,
            "instruction set": fl._core.isa,
            "compiler": fl._core.compiler,
            "versions": versions,
            "timing": f"median of {self.rounds} alternating rounds of at least {self.seconds} s each",
        }
        for name, value in self.header.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            print(f"{name:16} {text}")
        sys.stdout.flush()

    def measure(self, calls):
        """Seconds an iteration takes, name -> the median over rounds in which the calls take turns.

        calls: dict of name -> function of n that does at least n iterations and returns how many it did.
        """
        sizes = {}
        for name, call in calls.items():
            n = 1
            call(n)
            while (took := timed(call, n)) * n < self.seconds:
                n *= min(100, max(2, math.ceil(self.seconds / took / n)))
            sizes[name] = n
        times = {name: [] for name in calls}
        for _ in range(self.rounds):
            for name, call in calls.items():
                time.sleep(0.005)   # threads that still wait for the call before fall asleep
                call(1)             # and the data is back in the caches
                times[name].append(timed(call, sizes[name]))
        return {name: statistics.median(values) for name, values in times.items()}

    def table(self, title, rows, base="fastloop", unit="us"):
        """Print a table; the arguments are `markdown`'s."""
        self.tables.append({"title": title, "rows": rows, "base": base, "unit": unit})
        print(f"\n{title}\n", *markdown(rows, base, unit), sep="\n")
        sys.stdout.flush()

    def close(self):
        if self.args.json:
            with open(self.args.json, "w") as file:
                json.dump({"header": self.header, "tables": self.tables}, file, indent=1)


def markdown(rows, base, unit, only=None):
    """The lines of a table; only: the columns that it has, by default all.

    rows: list of dict, column -> str or number.  Under "seconds" a dict of implementation -> seconds, shown in the unit
    and, in brackets, as a multiple of what `base` takes.
    """
    cells = []
    for row in rows:
        shown = {}
        for column, value in row.items():
            if column != "seconds":
                shown[column] = number(value)
                continue
            for name, seconds in value.items():
                ratio = "" if name == base else f" ({number(seconds / value[base])})"
                shown[f"{name} {unit}"] = number(seconds * UNITS[unit]) + ratio
        cells.append(shown)
    columns = list(dict.fromkeys(name for row in cells for name in row))
    if only is not None:
        if unknown := set(only) - set(columns):
            raise ValueError(f"no columns {', '.join(sorted(unknown))}; there are {', '.join(columns)}")
        columns = only
    lines = [columns] + [[row.get(name, "-") for name in columns] for row in cells]
    widths = [max(2, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return ["| " + " | ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines]


def timed(call, n):
    """Seconds that each iteration of call(n) took."""
    began = time.perf_counter()
    done = call(n)
    return (time.perf_counter() - began) / done


def number(value):
    """Three digits that count: 3.08, 58.2, 12,345."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def repeat(call):
    """A function of n that calls n times, for `measure`."""
    def many(n):
        for _ in range(n):
            call()
        return n

    return many


def peak_memory(call):
    """Bytes by which the resident memory rose above its start at the highest while call() ran; None but on Linux."""
    def resident(field):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)    # or what was freed before would serve, and count for nothing
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")     # the high-water mark starts anew
        before = resident("VmRSS")
        call()
        return resident("VmHWM") - before
    except (OSError, AttributeError):    # not Linux with glibc
        call()
        return None
