"""Whether this process is one of the package's own commands, and what Ctrl-C does until that has begun.

Imported before everything else in the package: NumPy and the rest take a fifth of a second, in which nothing of the
command's own could catch it.  Other processes are not affected.
"""

import os
import signal
import sys
from types import FrameType


def running() -> str:
    """The name under which the package's command runs in this process; "" where it is another's process."""
    program = os.path.basename((sys.argv or [""])[0])       # "-m" while the package of a module to run is imported
    modules = {argument.removeprefix("-m") for argument in sys.orig_argv}
    if program.startswith("fastloop-train") or (program == "-m" and "fastloop.train" in modules):
        return "fastloop-train"
    return "fastloop" if program == "-m" and "fastloop" in modules else ""


def leave(number: int, frame: FrameType | None) -> None:
    """On Ctrl-C while the command is still being imported: print a line and exit, wherever that is."""
    os.write(2, f"{running()}: interrupted\n".encode())
    os._exit(130)


def begin() -> None:
    """From here on the command answers Ctrl-C itself, as a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if running() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
