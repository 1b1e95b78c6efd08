"""Reading, splitting, packing and the bigram baseline; each error with the place it names."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import fastloop.data
from fastloop._core import variant
from fastloop.data import bigram_baseline, load_docs, pack, split_docs
from fastloop.errors import DataError
from fastloop.tokenizer import CharTokenizer


@pytest.fixture
def write(tmp_path):
    def write(raw):
        path = tmp_path / "docs.txt"
        path.write_bytes(raw)
        return path

    return write


# --- load_docs

def test_the_embedded_names():
    docs = load_docs()
    assert len(docs) == len(set(docs)) == 5163
    assert set("".join(docs)) == set("abcdefghijklmnopqrstuvwxyz")
    assert docs != sorted(docs)
    assert Path(fastloop.data.NAMES).read_bytes() == "".join(doc + "\n" for doc in docs).encode()


@pytest.mark.parametrize("raw, docs", [
    (b"anna\nbob\n", ["anna", "bob"]),
    (b"anna\nbob", ["anna", "bob"]),
    (b"anna\r\nbob\r\n", ["anna", "bob"]),
    (b"anna\rbob\r", ["anna", "bob"]),
    (b"anna\r\n\r\nbob\n\r\rcleo", ["anna", "bob", "cleo"]),
    (b"\n  \n\t anna smith \n\n", ["anna smith"]),
    (b"\xef\xbb\xbfanna\nbob", ["anna", "bob"]),
    (b"\xef\xbb\xbf\n\xef\xbb\xbfanna", ["\ufeffanna"]),        # only the first is a byte order mark
    ("zoë\u2028x\x0by\x0cz\x1c\x85w\nbob".encode(), ["zoë\u2028x\x0by\x0cz\x1c\x85w", "bob"]),
    (b"a", ["a"]),
    (b"a" * 3_000_000 + b"\nb", ["a" * 3_000_000, "b"]),
], ids=range(11))
def test_a_line_is_a_document(write, raw, docs):
    path = write(raw)
    assert load_docs(path) == docs
    assert load_docs(str(path)) == docs


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings(write, encoding):
    assert load_docs(write("zoë\r\nbob\n".encode(encoding)), encoding=encoding) == ["zoë", "bob"]


@pytest.mark.parametrize("raw, encoding, place", [
    (b"\xff", "utf-8", "line 1, byte offset 0: 0xff"),
    (b"anna\nb\xe9b\n", "utf-8", "line 2, byte offset 6: 0xe9"),
    (b"an\xc3\xa9\r\n\r\nb\rab\xe9", "utf-8", "line 4, byte offset 12: 0xe9"),
    (b"anna\nbob\xc3", "utf-8", "line 2, byte offset 8: 0xc3"),
    (b"\xef\xbb\xbfanna\nb\xe9b\n", "utf-8", "line 2, byte offset 9: 0xe9"),
    (b"\xef\xbb\xbfanna\nb\xe9b\n", "utf-8-sig", "line 2, byte offset 9: 0xe9"),
    (b"anna\n\x80", "ascii", "line 2, byte offset 5: 0x80"),
    ("anna\nbob".encode("utf-16") + b"x", "utf-16", "line 2, byte offset 18: 0x78"),
])
def test_bytes_that_the_encoding_does_not_allow(write, raw, encoding, place):
    path = write(raw)
    with pytest.raises(DataError) as error:
        load_docs(path, encoding)
    assert str(error.value).startswith(f"{path}: {place} is not valid {encoding} (")


@pytest.mark.parametrize("raw, place", [
    (b"\0", "line 1, column 1"),
    (b"anna\r\n\xc3\xa9ab\0c\0", "line 2, column 4"),
    (b"\xef\xbb\xbfa\0", "line 1, column 2"),
    ("anna".encode("utf-16-le"), "line 1, column 2"),
])
def test_nul(write, raw, place):
    path = write(raw)
    with pytest.raises(DataError) as error:
        load_docs(path)
    assert str(error.value).startswith(f"{path}: {place}: a NUL character")


@pytest.mark.parametrize("raw, what", [
    (b"", "the file is empty"),
    (b"\n \r\n\t\r", "the file holds only blank lines"),
    (b"\xef\xbb\xbf", "the file is empty"),
])
def test_no_documents(write, raw, what):
    path = write(raw)
    with pytest.raises(DataError) as error:
        load_docs(path)
    assert str(error.value) == f"{path}: no documents: {what}"


def test_errors_of_the_system_are_left_as_they_are(tmp_path, write):
    with pytest.raises(FileNotFoundError, match="missing"):
        load_docs(tmp_path / "missing.txt")
    with pytest.raises(IsADirectoryError):
        load_docs(tmp_path)
    with pytest.raises(LookupError, match="no-such-encoding"):
        load_docs(write(b"anna"), encoding="no-such-encoding")
    with pytest.raises(TypeError, match="int"):
        load_docs(0)


# --- split_docs

def test_a_split_keeps_every_document_once_and_in_order():
    docs = [f"{i:03}" for i in range(200)] + ["same", "same"]
    train, val = split_docs(docs, 0.1, seed=1)
    assert (len(train), len(val)) == (182, 20)
    assert Counter(train) + Counter(val) == Counter(docs)
    assert train == sorted(train)
    assert val == sorted(val)


def test_a_split_is_fixed_by_its_seed():
    docs = [str(i) for i in range(20)]
    # These very documents, for good: a resumed run must find its split again.
    assert split_docs(docs, 0.25, seed=42)[1] == ["1", "7", "9", "12", "19"]
    assert split_docs(docs, 0.25, seed=np.int64(42))[1] == ["1", "7", "9", "12", "19"]
    assert len({tuple(split_docs(docs, 0.25, seed)[1]) for seed in range(20)}) > 15


def test_every_document_is_as_likely_to_be_chosen():
    chosen = Counter(doc for seed in range(1000) for doc in split_docs(list("abcdefghij"), 0.3, seed)[1])
    assert sum(chosen.values()) == 3000
    assert all(abs(chosen[doc] - 300) < 6 * math.sqrt(210) for doc in "abcdefghij")


def test_a_split_without_validation():
    assert split_docs(["a", "b"], 0, seed=1) == (["a", "b"], [])
    assert split_docs(["a", "b"], 0.1, seed=1) == (["a", "b"], [])


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, math.nan, math.inf])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=rf"^fraction = {fraction} is outside \[0, 1\)$"):
        split_docs(["a", "b"], fraction, seed=1)


@pytest.mark.parametrize("docs, fraction", [(["a"], 0.9), (["a", "b"], 0.8), ([], 0)])
def test_nothing_left_to_train_on(docs, fraction):
    with pytest.raises(ValueError, match=rf"{fraction} of {len(docs)} documents leaves none to train on"):
        split_docs(docs, fraction, seed=1)


def test_what_is_not_documents_or_a_seed():
    with pytest.raises(TypeError, match="not a list of documents"):
        split_docs("anna", 0.5, seed=1)
    for seed in (None, 1.5, "1"):
        with pytest.raises(TypeError, match=r"seed = .* must be an int"):
            split_docs(["a", "b"], 0.5, seed)


# --- pack

def predictions(docs, tokenizer, block_size):
    """(id seen, id to predict, position) of every prediction, one by one."""
    out = []
    for doc in docs:
        ids = [tokenizer.bos, *tokenizer.encode(doc), tokenizer.bos]
        out += list(zip(ids, ids[1:], range(block_size), strict=False))
    return out


@pytest.mark.parametrize("block_size, n_cut", [(1, 3), (2, 3), (3, 2), (4, 1), (7, 0), (100, 0)])
def test_pack(block_size, n_cut):
    docs = ["banana", "", "cab", "na"]
    tokenizer = CharTokenizer(docs)
    data, cut = pack(docs, tokenizer, block_size)
    assert (data.n_examples, data.block_size, data.longest, cut) == (4, block_size, min(block_size, 7), n_cut)
    batch = variant.TokenBatch(data)
    batch.take(np.arange(4), 4.0)
    inputs, targets, positions, weights = batch.arrays()
    assert list(zip(inputs, targets, positions, strict=True)) == predictions(docs, tokenizer, block_size)
    assert sum(weights) == pytest.approx(1, rel=1e-14)


def test_pack_of_empty_documents_only():
    data, cut = pack(["", ""], CharTokenizer(["a"]), 8)
    assert (data.n_examples, data.longest, cut) == (2, 1, 0)


@pytest.mark.parametrize("call", [
    pack,
    lambda docs, tokenizer, block_size: bigram_baseline(docs, tokenizer=tokenizer, block_size=block_size),
    lambda docs, tokenizer, block_size: bigram_baseline(["a"], docs, tokenizer=tokenizer, block_size=block_size),
], ids=["pack", "train", "val"])
def test_what_pack_and_the_baseline_refuse(call):
    tokenizer = CharTokenizer(["abc"])
    with pytest.raises(ValueError, match="docs is empty"):
        call([], tokenizer, 8)
    with pytest.raises(DataError, match=r"docs\[1\]\[2\] = 'd'"):
        call(["a", "abd"], tokenizer, 8)
    for block_size in (0, -1):
        with pytest.raises(ValueError, match=f"block_size = {block_size} must be an int of at least 1"):
            call(["a"], tokenizer, block_size)
    with pytest.raises(TypeError, match=r"block_size = 8\.0 must be an int"):
        call(["a"], tokenizer, 8.0)


# --- bigram_baseline

def counted(train, val, tokenizer, block_size, smoothing):
    """The baseline by its definition, one prediction at a time."""
    pairs = Counter((a, b) for a, b, _ in predictions(train, tokenizer, block_size))
    firsts = Counter(a for a, _, _ in predictions(train, tokenizer, block_size))
    asked = predictions(val, tokenizer, block_size)
    return -math.fsum(
        math.log((pairs[a, b] + smoothing) / (firsts[a] + smoothing * tokenizer.vocab_size)) for a, b, _ in asked
    ) / len(asked)


@pytest.mark.parametrize("block_size", [1, 2, 8, 100])
def test_the_baseline_counts_the_models_predictions(block_size):
    docs = load_docs()[:300] + ["", "zz"]
    tokenizer = CharTokenizer(docs)
    alone = bigram_baseline(docs, tokenizer=tokenizer, block_size=block_size)
    assert alone == pytest.approx(counted(docs, docs, tokenizer, block_size, 0), rel=1e-13)
    train, val = docs[:250], docs[250:]
    held_out = bigram_baseline(train, val, tokenizer=tokenizer, block_size=block_size)
    assert held_out == pytest.approx(counted(train, val, tokenizer, block_size, 1), rel=1e-13)


def test_the_baseline_where_val_has_characters_that_train_has_not():
    tokenizer = CharTokenizer(["abz"])
    # (BOS, z) was not seen, BOS once: 1 / (1 + 4).  (z, BOS) was not seen, nor z: 1 / 4.
    found = bigram_baseline(["a"], ["z"], tokenizer=tokenizer, block_size=8)
    assert found == pytest.approx(-(math.log(1 / 5) + math.log(1 / 4)) / 2, rel=1e-15)


def test_the_baseline_of_what_is_certain_is_zero():
    assert bigram_baseline(["a", "a"], tokenizer=CharTokenizer(["ab"]), block_size=8) == 0


def test_the_baseline_of_a_large_alphabet():
    # A table of its pairs would take 87 GB, and the pairs do not fit 32 bits.
    doc = "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x1A000)]))
    found = bigram_baseline([doc], tokenizer=CharTokenizer([doc]), block_size=10**6)
    assert found == 0       # each character occurs once, so what follows it is certain


def test_the_baseline_of_the_embedded_names():
    docs = load_docs()
    tokenizer = CharTokenizer(docs)
    assert bigram_baseline(docs, tokenizer=tokenizer, block_size=12) == pytest.approx(2.335, abs=5e-4)
    assert bigram_baseline(docs, tokenizer=tokenizer, block_size=8) == pytest.approx(2.358, abs=5e-4)
    assert pack(docs, tokenizer, 8)[1] == 795
    train, val = split_docs(docs, 0.1, seed=42)
    assert 2.33 < bigram_baseline(train, val, tokenizer=tokenizer, block_size=8) < 2.43
