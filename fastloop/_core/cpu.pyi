# What the CPU can run, known before a variant is chosen.

compiler: str   # name and version

def supported() -> list[str]: ...
