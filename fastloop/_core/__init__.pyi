# Stands for whichever variant was chosen; all have the same names.
from . import baseline as variant

__all__ = ["compiler", "isa", "supported", "variant"]

isa: str                # of the variant: "baseline", "avx2" or "avx512"
supported: list[str]    # what this CPU can run, best first
compiler: str           # name and version

def remade(name: str, arguments: tuple[object, ...], taken: tuple[bytes, float] | None = None) -> object: ...
