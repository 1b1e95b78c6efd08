"""Checkpoint files: named arrays and a JSON description, written atomically, checked before anything is believed.

A checkpoint is a NumPy .npz file (np.load reads it) whose archive comment holds the SHA-256 of all that comes before
it: a file cut short or changed in any bit is refused.  It never holds pickled objects.  What goes into one is decided
in trainer.py.
"""

import io
import json
import os
import struct

import numpy as np

from .errors import CheckpointError

FORMAT = 1
MARK = b"fastloop sha256 "
COMMENT = len(MARK) + 64
META = "meta.json"
META_LIMIT = 64 << 20       # bytes of JSON that are looked at; a tokenizer of all of Unicode takes 10 MB


def write(path, arrays, meta):
    """Write arrays (dict of name -> array) and meta (JSON-able dict) to path, whole or not at all.

    The new file is complete on disk before it takes the place of an old one.  Raises OSError, the old file untouched
    (but the new one in its place where only the last move failed, flushing their folder).
    """
    text = json.dumps({"format": FORMAT, **meta}, allow_nan=True).encode()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{META: np.frombuffer(text, np.uint8)}, **arrays)
    # A zip archive ends with the length of its comment (none, so far) and the comment.
    body = buffer.getvalue()[:-2] + struct.pack("<H", COMMENT)
    atomically(path, body, MARK + digest(body))


def digest(data):
    """SHA-256 as 64 ASCII hexadecimal digits."""
    import hashlib

    return hashlib.sha256(data).hexdigest().encode()


def atomically(path, *parts):
    """Write bytes to path through a temporary file in the same folder, flushed to disk before it is renamed."""
    path = os.path.abspath(os.fspath(path))
    folder = os.path.dirname(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        if isinstance(error, OSError) and error.filename == temporary:
            raise OSError(error.errno, error.strerror, path) from None      # the name that the user knows
        raise
    # The rename itself is on disk once its folder is.  Windows cannot open one.
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path):
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
            if any(entry.compress_type for entry in archive.zip.infolist()):
                raise ValueError("its parts are compressed, and could be of any size")
            arrays = {name: archive[name] for name in archive.files}
        text = arrays.pop(META).tobytes()
        if len(text) > META_LIMIT:
            raise ValueError(f"its description has {len(text):,} bytes, at most {META_LIMIT:,} are read")
        meta = json.loads(text)
        found = meta["format"]
    except (MemoryError, SystemError):      # the latter is how NumPy ends at some points without memory
        raise
    except Exception as error:      # somebody else's archive can be wrong in more ways than there are names for
        raise CheckpointError(f"{path}: not a fastloop checkpoint ({error})") from None
    if found != FORMAT:
        raise CheckpointError(f"{path}: written in format {found}; this fastloop reads format {FORMAT}")
    return arrays, meta
