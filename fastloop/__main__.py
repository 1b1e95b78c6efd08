"""`python -m fastloop`: which commands there are, and what this installation is."""

from __future__ import annotations

import shlex
import sys

from . import __version__, show_config

HELP = """\
fastloop: small models trained on a CPU

  python -m fastloop.train          train on a text file, or on the embedded names, and sample (--help lists the flags)
  python -m fastloop --version
"""


def main(arguments: list[str]) -> int:
    """The exit status."""
    if arguments in (["--version"], ["-V"]):
        print(f"fastloop {__version__}")
    elif arguments in ([], ["--help"], ["-h"]):
        print(HELP)
        show_config()
    else:
        command = shlex.join(["python", "-m", "fastloop.train", *arguments])
        print(f"fastloop: error: it takes no arguments; did you mean {command}?", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
