"""Text to token ids and back.  Only tokenizers live here; files are read in data.py."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import extras
from .errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from ._types import Ints, Path, Tokenizer, Whole


def as_docs(docs: Iterable[str]) -> list[str]:
    """`docs` as a list of str; TypeError for what could be mistaken for one, such as one str or a DataFrame."""
    if isinstance(docs, str):
        raise TypeError(f"docs is one str, not a list of documents; pass [text], or text.split('\\n'): {docs[:40]!r}")
    if isinstance(docs, dict) or hasattr(docs, "columns"):
        raise TypeError(f"docs is a {type(docs).__name__}, not a list of documents: choose a column, docs[...]")
    if not hasattr(docs, "__iter__"):
        raise TypeError(f"docs = {docs!r:.80} is a {type(docs).__name__}, not a list of documents")
    docs = list(docs)
    if set(map(type, docs)) - {str}:
        for i, doc in enumerate(docs):
            if not isinstance(doc, str):
                raise TypeError(f"docs[{i}] = {doc!r:.80} is {type(doc).__name__}, not str")
    return docs


def as_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer; TypeError for something else in its place, such as the documents."""
    if not (hasattr(tokenizer, "vocab_size") and hasattr(tokenizer, "encode")):
        raise TypeError(f"tokenizer = {tokenizer!r:.80} must be a tokenizer, such as CharTokenizer(docs)")
    return tokenizer


def _code_points(text: str) -> NDArray[np.uint32]:
    """Each character's code point, (len(text),) uint32.  A lone surrogate is a character like any other."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _has_surrogates(chars: Iterable[str]) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in chars)


class CharTokenizer:
    """One token for each distinct character of `docs`, and one, BOS, for the edges of a document.

    docs: list of str, or one str.  The sorted characters are ids 0 .. n-1; BOS is the last id, n.

    Attributes: chars (str of length n, chars[i] is token i), bos (n), vocab_size (n + 1).
    Raises TypeError where docs holds something else than str, ValueError where it has no characters.
    """

    chars: str
    bos: int
    vocab_size: int

    def __init__(self, docs: Iterable[str]) -> None:
        self.chars = "".join(sorted(set(docs if isinstance(docs, str) else "".join(as_docs(docs)))))
        if not self.chars:
            raise ValueError("docs has no characters, so there is nothing to make tokens of")
        self.bos = len(self.chars)
        self.vocab_size = self.bos + 1
        self._id_of = {char: i for i, char in enumerate(self.chars)}
        codes = _code_points(self.chars)
        # From code point to id, -1 where unseen.  The entry past the largest code stands for all that are larger.
        self._table = np.full(int(codes[-1]) + 2, -1, dtype=np.int32)
        self._table.put(codes, np.arange(self.bos))

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, a list of int, without BOS.  Raises DataError at an unseen character."""
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}, not str; encode_docs takes a list of documents")
        try:
            return [self._id_of[char] for char in text]
        except KeyError:
            at = next(i for i, char in enumerate(text) if char not in self._id_of)
            raise self._unseen(f"text[{at}]", text[at]) from None

    def decode(self, ids: Iterable[Whole]) -> str:
        """The text of `ids`, an iterable of int; BOS is skipped.  Raises IndexError outside [0, vocab_size)."""
        text = []
        for i, token in enumerate(ids):
            if not 0 <= token < self.vocab_size:
                raise IndexError(f"ids[{i}] = {token} is outside [0, {self.vocab_size})")
            if token != self.bos:
                text.append(self.chars[token])
        return "".join(text)

    def encode_docs(self, docs: Iterable[str]) -> tuple[NDArray[np.int32], Ints]:
        """All documents as ids, end to end, with a BOS before, between and after them.

        docs: list of str, at least one; an empty document is two BOS in a row.
        Returns (ids, starts): ids (N + 1,) int32 and starts (len(docs) + 1,) int64, such that document i, from BOS
        to BOS, is ids[starts[i] : starts[i + 1] + 1].  N is the number of predictions, characters + documents.
        Raises DataError at an unseen character, ValueError where docs is empty, TypeError where it is one str (say
        [text]) or holds something else than str.
        """
        docs = as_docs(docs)
        if not docs:
            raise ValueError("docs is empty; at least one document is needed")
        starts = np.zeros(len(docs) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, docs), np.int64, len(docs)) + 1, out=starts[1:])
        # The spaces only keep the places that BOS takes afterwards; they need not be in the vocabulary.
        codes = _code_points(" " + " ".join(docs) + " ")
        ids = self._table.take(codes, mode="clip")
        ids[starts] = self.bos
        if ids.min() < 0:
            at = int(np.argmax(ids < 0))
            doc = int(np.searchsorted(starts, at)) - 1
            char = at - int(starts[doc]) - 1
            raise self._unseen(f"docs[{doc}][{char}]", docs[doc][char])
        return ids, starts

    def to_dict(self) -> dict[str, Any]:
        """All there is to know, as plain data for JSON; `from_dict` makes an equal tokenizer of it."""
        # JSON would read a high surrogate and a low one after it as one character, so they are written one by one.
        return {"type": "char", "chars": list(self.chars) if _has_surrogates(self.chars) else self.chars}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The tokenizer that `to_dict` wrote.  Raises ValueError for anything else."""
        chars = data.get("chars")
        if isinstance(chars, list) and all(isinstance(char, str) and len(char) == 1 for char in chars):
            chars = "".join(chars) if _has_surrogates(chars) else None
        if data.get("type") != "char" or not isinstance(chars, str) or list(chars) != sorted(set(chars)):
            raise ValueError(f"not a CharTokenizer's data: {data!r:.200}; expected type 'char', sorted distinct chars")
        return cls([chars])

    @classmethod
    def from_safetensors(cls, path: Path) -> Self:
        """The tokenizer that a model's save_safetensors(path, tokenizer) put into the file's metadata.

        Raises ValueError where there is none, and where the file is damaged (extra: safetensors).
        """
        with extras.open_safetensors(path) as file:
            text = (file.metadata() or {}).get("tokenizer")
        if text is None:
            raise ValueError(f"{path}: its metadata hold no tokenizer; save_safetensors(path, tokenizer) puts it there")
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: its metadata hold no tokenizer that is known here ({error})") from error

    def __eq__(self, other: object) -> bool:
        return self.chars == other.chars if isinstance(other, CharTokenizer) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.chars)

    def __repr__(self) -> str:
        return f"CharTokenizer({self.bos} characters: {self._shown()}, bos={self.bos}, vocab_size={self.vocab_size})"

    def _shown(self) -> str:
        return repr(self.chars) if self.bos <= 60 else f"{self.chars[:60]!r}..."

    def _unseen(self, place: str, char: str) -> DataError:
        return DataError(f"{place} = {char!r} is not one of the {self.bos} characters known: {self._shown()}")
