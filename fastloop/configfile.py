"""TOML as --config reads it and as --dry-run writes it.  Which keys there are is in flags.py."""

import json
from typing import Any

from .errors import DataError


def read(path: str) -> dict[str, Any]:
    """The file's table; DataError where it is no TOML."""
    try:
        import tomllib
    except ImportError:
        raise DataError("--config needs Python 3.11 or newer, which reads TOML") from None
    with open(path, "rb") as file:
        raw = file.read()
    try:
        return tomllib.loads(raw.decode().removeprefix("\ufeff"))       # the byte order mark that some editors write
    except UnicodeDecodeError as error:
        hint = "; it begins as UTF-16 does, and TOML is UTF-8" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(f"{path}: {error}{hint}") from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: {error}") from None


def entry(key: str, value: object) -> str:
    """A line of the file, in ASCII, since it is read as UTF-8 whatever the terminal's encoding is."""
    if not isinstance(value, str):
        return f"{key} = {json.dumps(value)}"       # whose numbers and truth values are TOML's too
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"--{key} {value!r}: is not valid Unicode, as a configuration must be") from None
    plain = (c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
    return f'{key} = "{"".join(plain)}"'


def comment(line: str) -> str:
    """The line as a comment of TOML, which may hold no control characters; all beyond ASCII is escaped too."""
    return f"# {line.encode('unicode_escape').decode()}"
