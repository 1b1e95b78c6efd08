"""Checkpoint files: named arrays and a JSON description, written atomically, checked before anything is believed.

A checkpoint is a NumPy .npz file (np.load reads it) whose archive comment holds the SHA-256 of all that comes before
it: a file cut short or changed in any bit is refused.  It never holds pickled objects.  What the arrays and the
description say of a trainer is not known here; it is in codec.py.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._types import Array, Path

FORMAT = 2      # 1 was that of development versions: without class labels, held-out share, checksum of validation
MARK = b"fastloop sha256 "
COMMENT = len(MARK) + 64
META = "meta.json"
META_LIMIT = 64 << 20       # bytes of JSON that are read; a tokenizer of all of Unicode takes 10 MB


def write(path: Path, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Write arrays (dict of name -> array) and meta (JSON-able dict) to path, whole or not at all.

    The new file is complete on disk before it takes the place of an old one.  Raises ValueError for a meta that is
    too large for `read`, OSError with the old file untouched (or replaced, where only the last move failed, to flush
    the folder).
    """
    text = json.dumps({"format": FORMAT, **meta}, allow_nan=True).encode()
    if len(text) > META_LIMIT:
        size = f"{len(text):,} bytes, at most {META_LIMIT:,} are read"
        raise ValueError(f"{path}: its description, including notes, has {size}")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{META: np.frombuffer(text, np.uint8)}, **arrays)
    # A zip archive ends with the length of its comment (none, so far) and the comment.
    body = buffer.getvalue()[:-2] + struct.pack("<H", COMMENT)
    atomically(path, body, MARK + digest(body))


def check_path(name: str, path: object) -> str:
    """path as a str, refused where no file can have that name."""
    plain = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(plain, str):
        raise TypeError(f"{name} = {path!r} must be a path, a str or os.PathLike")
    if not plain or b"\0" in os.fsencode(plain):
        raise ValueError(f"{name} = {plain!r} is not the name of a file")
    return plain


def best_path(path: Path) -> str:
    """Where the best evaluation is saved beside path: run.npz -> run.best.npz."""
    root, extension = os.path.splitext(os.fspath(path))
    return f"{root}.best{extension}"


def check_folder(path: Path) -> None:
    """Raise now the OSError that writing to path would meet at the end of a long run, where that can be known."""
    check_replaceable(path)
    os.stat(os.path.dirname(os.path.realpath(path)))


def digest(data: Buffer) -> bytes:
    """SHA-256 as 64 ASCII hexadecimal digits."""
    import hashlib

    return hashlib.sha256(data).hexdigest().encode()


def atomically(path: Path, *parts: Buffer) -> None:
    """Write bytes to path through a temporary file in the same folder, flushed to disk before it is renamed.

    Where path is a symbolic link, the file that it leads to is replaced.  An old file's mode stays and, where the
    process may give files away, its owner.  Raises OSError, nothing changed, where path is no regular file (a folder, a
    device, a pipe), is write-protected, or cannot be made.
    """
    path = os.fsdecode(path)
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    # Unique among threads, processes and machines.  Cut short: it is longer than the target's, and 255 bytes at most.
    temporary = os.path.join(folder, f"{os.path.basename(target)[:40]}.{os.urandom(8).hex()}.tmp")
    try:
        old = check_replaceable(path)
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            if old is not None and hasattr(os, "fchmod"):
                with suppress(OSError):         # only root may give a file away, or not every file system can
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                with suppress(OSError):
                    os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) & 0o777)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        if isinstance(error, OSError) and error.filename in (temporary, None):
            raise OSError(error.errno, error.strerror, path) from None      # the name that the user knows
        raise
    # The rename itself is on disk once the folder is flushed.  Windows cannot open a folder.
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_replaceable(path: Path) -> os.stat_result | None:
    """os.stat of the file at path, or None; OSError where a new file may not replace what is there."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "a device or a pipe, which a file would replace", path)
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected", path)
    return found


def read(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """(arrays, meta) of a checkpoint.  Raises CheckpointError for a file that is not whole, OSError as open does."""
    path = os.fspath(path)
    with open(path, "rb") as file:
        data = file.read()
    comment = data[-COMMENT:]
    if len(data) < COMMENT or not comment.startswith(MARK):
        raise CheckpointError(f"{path}: not a fastloop checkpoint, or cut short ({len(data):,} bytes)")
    body = memoryview(data)[:-COMMENT]
    if digest(body) != comment[len(MARK) :]:
        raise CheckpointError(f"{path}: damaged: its checksum does not match its {len(data):,} bytes")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            parts = archive.zip.infolist()
            if any(part.compress_type for part in parts):
                raise ValueError("its members are compressed, and could be of any size")
            if sum(part.file_size for part in parts) > len(data):
                raise ValueError("its members overlap, and together could be of any size")
            arrays = {name: archive[name] for name in archive.files}
        text = arrays.pop(META).tobytes()
        if len(text) > META_LIMIT:
            raise ValueError(f"its description has {len(text):,} bytes, at most {META_LIMIT:,} are read")
        meta = json.loads(text)
        found = meta["format"]
    except (MemoryError, SystemError):      # NumPy raises the latter at some points without memory
        raise
    except Exception as error:      # a foreign archive can be wrong in more ways than can be listed
        raise CheckpointError(f"{path}: not a fastloop checkpoint ({error})") from None
    if found != FORMAT:
        raise CheckpointError(f"{path}: written in format {found}; this fastloop reads format {FORMAT}")
    return arrays, meta
