"""Documents: read, split, packed for a model, and scored by counting.  Tokenizers are in tokenizer.py."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._check import MOST_SEED, whole
from ._core import variant
from .errors import DataError
from .tokenizer import as_docs, as_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._types import Ints, Number, Path, Tokenizer, Whole

NAMES = os.path.join(os.path.dirname(__file__), "names.txt")


def load_docs(path: Path | None = None, encoding: str = "utf-8") -> list[str]:
    """Read a text file in which each line is a document.

    path: str or os.PathLike; None reads the embedded first names (NAMES.md says where they come from).
    Lines end with LF, CRLF or CR, and with nothing else.  A byte order mark at the start of the file, whitespace
    around a line, and blank lines are dropped.
    Returns a list of at least one non-empty str, in the order of the file.
    Raises DataError for bytes that `encoding` does not allow, for NUL and for a file without documents, always with
    the place; OSError as `open` does; LookupError for an encoding that Python does not know.
    """
    path = NAMES if path is None else os.fspath(path)
    text = load_text(path, encoding)
    docs = [doc for line in _lines(text) if (doc := line.strip())]
    if not docs:
        raise DataError(f"{path}: no documents: the file {'holds only blank lines' if text else 'is empty'}")
    return docs


def load_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a whole file as one text, for a model that learns from windows of it.

    A byte order mark is dropped, line ends become LF, and nothing else changes.  Raises as `load_docs` does.
    """
    with open(path, "rb") as file:
        raw = file.read()
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        # Some codecs remove the byte order mark before they count bytes.
        hint = "; it begins as UTF-16 does" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        offset = len(raw) - len(error.object) + error.start
        line = len(_lines(raw[:offset].decode(encoding, "replace")))
        raise DataError(
            f"{path}: line {line}, byte offset {offset}: 0x{raw[offset]:02x} is not valid {encoding} "
            f"({error.reason}{hint})"
        ) from None
    text = text.removeprefix("\ufeff")
    nul = text.find("\0")
    if nul >= 0:
        before = _lines(text[:nul])
        raise DataError(
            f"{path}: line {len(before)}, column {len(before[-1]) + 1}: a NUL character, which text does not have; "
            f"is the file binary, or in another encoding than {encoding}?"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(text: str) -> list[str]:
    # Not str.splitlines, which also splits at form feeds, U+2028 and other characters inside a line.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def split_docs(docs: Iterable[str], fraction: Number, seed: Whole) -> tuple[list[str], list[str]]:
    """Set a random part of the documents aside for validation.

    docs: list of str, at least one.  fraction: of the documents, in [0, 1); their number is rounded to the nearest
    whole one, so that few documents can give an empty val.  seed: int; equal seeds give equal splits on every machine.
    Returns (train, val), two lists in the order of docs; each document is in exactly one of them.
    Raises ValueError for a fraction or seed out of range and where no document would be left to train on.
    """
    docs = as_docs(docs)
    chosen = choose(len(docs), fraction, seed, "documents")
    held = set(chosen)
    train = [doc for i, doc in enumerate(docs) if i not in held]
    return train, [docs[i] for i in chosen]


def choose(n: int, fraction: Number, seed: Whole, what: str) -> list[int]:
    """The indices of a random fraction of n documents (or of `what` they are), sorted; the same on every machine."""
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction = {fraction} is outside [0, 1)")
    n_val = round(fraction * n)
    if n_val == n:
        raise ValueError(f"fraction = {fraction} of {n} {what} leaves none to train on")
    # The standard library's generator: its stream is fixed for all versions, and importing numpy.random takes 15 ms.
    rng = random.Random(whole("seed", seed, 0, MOST_SEED))
    keys = [rng.random() for _ in range(n)]
    return sorted(sorted(range(n), key=keys.__getitem__)[:n_val])


def hold_out(docs: Sequence[str], share: float, seed: int) -> tuple[Sequence[str], Sequence[str]]:
    """(docs to train on, docs for validation): of documents as split_docs does, of one str its tail."""
    if isinstance(docs, str):
        first = len(docs) - int(len(docs) * share)
        train, held = docs[:first], docs[first:]
    else:
        train, held = split_docs(docs, share, seed)
    if not held:
        what = "characters" if isinstance(docs, str) else "documents"
        raise ValueError(f"validation = {share} of {len(docs)} {what} holds none out")
    return train, held


def pack(docs: str | Iterable[str], tokenizer: Tokenizer, block_size: Whole) -> tuple[variant.TokenData, int]:
    """Documents in the layout that the compiled models read.

    docs: list of str, at least one; an empty str is one prediction, from BOS to BOS.  Or one str, a text to be read in
    windows of block_size predictions from anywhere in it, without BOS.
    Returns (data, n_cut): a TokenData, and how many documents give more than `block_size` predictions, and are cut.
    Raises ValueError for a block_size below 1; for the rest as `tokenizer.encode_docs` does.
    """
    block_size = whole("block_size", block_size)
    if isinstance(docs, str):
        return variant.TokenData(_stream(docs, tokenizer), None, block_size), 0
    ids, starts = tokenizer.encode_docs(docs)
    n_cut = int(np.count_nonzero(np.diff(starts) > block_size))
    return variant.TokenData(ids, starts, block_size), n_cut


def bigram_baseline(
    train: str | Iterable[str], val: str | Iterable[str] | None = None, *, tokenizer: Tokenizer, block_size: Whole
) -> float:
    """The loss of the bigram count model, in nats per token: what a model that sees one token can reach.

    Counts are over the predictions that a model is asked for: documents from BOS to BOS, cut to `block_size`.
    Without val: the maximum-likelihood model of train, on train itself, -mean log(n(a, b) / n(a)).
    With val: -mean log((n(a, b) + 1) / (n(a) + V)) over the pairs (a, b) of val, with n counted on train.
    Raises as `pack` does.
    """
    V = as_tokenizer(tokenizer).vocab_size
    trained = _pairs(train, tokenizer, block_size)
    # Counts of the pairs that occur, not a (V, V) table: a large alphabet would take gigabytes.
    pairs, counts = np.unique(trained, return_counts=True)
    if val is None:
        asked, times, n_pair, extra = pairs, counts, counts, 0
    else:
        asked, times = np.unique(_pairs(val, tokenizer, block_size), return_counts=True)
        nearest = np.minimum(np.searchsorted(pairs, asked), pairs.size - 1)
        n_pair, extra = np.where(pairs[nearest] == asked, counts[nearest], 0), 1
    n_first = np.bincount(trained // V, minlength=V)[asked // V]
    return float(times @ np.log((n_first + extra * V) / (n_pair + extra)) / times.sum())


def _pairs(docs: str | Iterable[str], tokenizer: Tokenizer, block_size: Whole) -> Ints:
    """The predictions of docs, cut to block_size, as (N,) int64: V * (the id that is seen) + the id to predict."""
    block_size = whole("block_size", block_size)
    if isinstance(docs, str):
        ids = _stream(docs, tokenizer).astype(np.int64)
        return ids[:-1] * tokenizer.vocab_size + ids[1:]
    ids, starts = tokenizer.encode_docs(docs)
    positions = np.arange(ids.size - 1) - np.repeat(starts[:-1], np.diff(starts))
    ids = ids.astype(np.int64)
    return (ids[:-1] * tokenizer.vocab_size + ids[1:])[positions < block_size]


def _stream(text: str, tokenizer: Tokenizer) -> NDArray[np.int32]:
    """The ids of one text, without the BOS on either side."""
    ids, _ = tokenizer.encode_docs([text])
    return ids[1:-1]
