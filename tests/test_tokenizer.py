"""CharTokenizer: ids, both directions, the packed layout, and what each wrong input is told."""

import json

import numpy as np
import pytest

from fastloop.errors import DataError
from fastloop.tokenizer import CharTokenizer

DOCS = ["banana", "cab", "", "a"]
# Beyond the basic plane, combining marks, a lone surrogate, and characters that are whitespace to some.
STRANGE = ["naïve 😀", "e\u0301", "\ud83d", "\u2028\x0b", "日本語"]


@pytest.fixture
def tokenizer():
    return CharTokenizer(DOCS)


def test_ids_are_the_sorted_characters_and_bos_is_last(tokenizer):
    assert tokenizer.chars == "abcn"
    assert (tokenizer.bos, tokenizer.vocab_size) == (4, 5)
    assert tokenizer.encode("nab") == [3, 0, 1]
    assert tokenizer.encode("") == []


def test_the_order_of_documents_does_not_matter(tokenizer):
    assert CharTokenizer(DOCS[::-1]) == tokenizer


@pytest.mark.parametrize("docs", [DOCS, STRANGE])
def test_decode_undoes_encode(docs):
    tokenizer = CharTokenizer(docs)
    assert [tokenizer.decode(tokenizer.encode(doc)) for doc in docs] == docs


def test_decode_skips_bos_and_takes_arrays(tokenizer):
    assert tokenizer.decode(np.array([4, 2, 0, 4, 1, 4], dtype=np.int32)) == "cab"


@pytest.mark.parametrize("token", [-1, 5, 2**63 - 1])
def test_decode_refuses_ids_out_of_range(tokenizer, token):
    with pytest.raises(IndexError, match=rf"^ids\[1\] = {token} is outside \[0, 5\)$"):
        tokenizer.decode([0, token])


@pytest.mark.parametrize("docs", [DOCS, STRANGE, [""] * 3 + ["a"], ["a", ""], ["x"]])
def test_encode_docs_is_encode_between_bos(docs):
    tokenizer = CharTokenizer(docs)
    ids, starts = tokenizer.encode_docs(docs)
    assert (ids.dtype, starts.dtype) == (np.int32, np.int64)
    expected, places = [tokenizer.bos], [0]
    for doc in docs:
        expected += [*tokenizer.encode(doc), tokenizer.bos]
        places.append(len(expected) - 1)
    assert ids.tolist() == expected
    assert starts.tolist() == places


def test_encode_docs_takes_any_iterable(tokenizer):
    ids, starts = tokenizer.encode_docs(doc for doc in ["ab", "c"])
    assert (ids.tolist(), starts.tolist()) == ([4, 0, 1, 4, 2, 4], [0, 3, 5])


# Below the vocabulary, inside its range of code points, just above it, far above it, where a table of its size would
# wrap round to 'a' (209 = 112 + 97), and what encode_docs puts between documents.
@pytest.mark.parametrize("char", ["A", "m", "o", "😀", "\xd1", " ", "\ud83d", "\0"])
def test_an_unseen_character_raises_with_its_place(tokenizer, char):
    known = " is not one of the 4 characters known: 'abcn'"
    with pytest.raises(DataError) as error:
        tokenizer.encode("ab" + char + char)
    assert str(error.value) == f"text[2] = {char!r}" + known
    cases = [(["a", "", "cab" + char, char], "docs[2][3]"), ([char], "docs[0][0]"), (["", char], "docs[1][0]")]
    for docs, place in cases:
        with pytest.raises(DataError) as error:
            tokenizer.encode_docs(docs)
        assert str(error.value) == f"{place} = {char!r}" + known


def test_a_large_alphabet_is_not_listed_whole():
    tokenizer = CharTokenizer(["".join(map(chr, range(0x4E00, 0x5E00)))])
    with pytest.raises(DataError, match=r"4096 characters known: '.{60}'\.\.\.$"):
        tokenizer.encode("a")
    assert len(repr(tokenizer)) < 150


def test_one_str_is_not_a_list_of_documents(tokenizer):
    with pytest.raises(TypeError, match=r"one str, not a list of documents; pass \[text\], or text\.split"):
        tokenizer.encode_docs("anna\nbob")


@pytest.mark.parametrize("docs", [None, 3])
def test_what_is_no_list_at_all_is_named(docs):
    with pytest.raises(TypeError, match=f"docs = {docs} is a .*, not a list of documents"):
        CharTokenizer(docs)


def test_one_str_gives_its_characters():
    assert CharTokenizer("banana\ncab") == CharTokenizer(["banana\ncab"])
    with pytest.raises(ValueError, match="docs has no characters"):
        CharTokenizer("")


def test_names_of_columns_are_not_documents(tokenizer):
    class DataFrame(list):
        columns = ("name", "age")

    for docs in ({"ab": 1}, DataFrame(["ab"])):
        for call in (CharTokenizer, tokenizer.encode_docs):
            with pytest.raises(TypeError, match=f"docs is a {type(docs).__name__}, not a .* choose a column, docs"):
                call(docs)


def test_documents_must_be_str(tokenizer):
    for call in (CharTokenizer, tokenizer.encode_docs):
        with pytest.raises(TypeError, match=r"^docs\[1\] = b'b' is bytes, not str$"):
            call(["a", b"b"])
    with pytest.raises(TypeError, match="text is list, not str"):
        tokenizer.encode(["a"])


def test_nothing_to_work_on(tokenizer):
    for docs in ([], ["", ""]):
        with pytest.raises(ValueError, match="docs has no characters"):
            CharTokenizer(docs)
    with pytest.raises(ValueError, match="docs is empty"):
        tokenizer.encode_docs([])


@pytest.mark.parametrize("docs", [DOCS, STRANGE])
def test_through_json_and_back(docs):
    tokenizer = CharTokenizer(docs)
    again = CharTokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again == tokenizer
    assert hash(again) == hash(tokenizer)
    assert again.encode_docs(docs)[0].tolist() == tokenizer.encode_docs(docs)[0].tolist()


@pytest.mark.parametrize("data", [
    {}, {"type": "char"}, {"type": "bpe", "chars": "ab"}, {"type": "char", "chars": ["a"]},
    {"type": "char", "chars": "ba"}, {"type": "char", "chars": "aab"},
])
def test_from_dict_refuses_what_to_dict_does_not_write(data):
    with pytest.raises(ValueError, match="not a CharTokenizer's data"):
        CharTokenizer.from_dict(data)


def test_equality_and_repr(tokenizer):
    assert tokenizer != CharTokenizer(["abcnx"])
    assert tokenizer != "abcn"
    assert repr(tokenizer) == "CharTokenizer(4 characters: 'abcn', bos=4, vocab_size=5)"


@pytest.mark.parametrize("docs", [["\ud83d\ude00"], ["a\ud800", "\udfff", "😀"], ["\udc80 abc"]])
def test_a_vocabulary_of_lone_surrogates_survives_json(docs):
    """A high one and a low one in a row would come back as one character."""
    tokenizer = CharTokenizer(docs)
    again = CharTokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again == tokenizer
    assert again.encode(docs[0]) == tokenizer.encode(docs[0])


@pytest.mark.parametrize("chars", [["\udc80", "a"], ["a\udc80"], [""], ["\udc80", 1], [["a"]], []])
def test_from_dict_refuses_a_list_of_anything_else(chars):
    with pytest.raises(ValueError, match="not a CharTokenizer's data"):
        CharTokenizer.from_dict({"type": "char", "chars": chars})
