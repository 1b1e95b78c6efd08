"""Logits and probabilities against the NumPy twin, and a model saved to a safetensors file and read back."""

import copy
import json
import os
import stat

import numpy as np
import pytest

import fastloop as fl
from fastloop import reference

DOCS = ["anna", "otto", "", "hannah", "o", "annabella"]
TOK = fl.CharTokenizer(DOCS)
MODELS = {
    "bigram": lambda: fl.BigramLM(TOK.vocab_size, n_embd=5, block_size=7, init_std=0.5),
    "gpt": lambda: fl.GPT(TOK.vocab_size, n_embd=8, n_head=2, n_layer=2, block_size=7, init_std=0.3),
    "gpt of more ids": lambda: fl.GPT(TOK.vocab_size + 3, n_embd=8, n_head=2, block_size=7, init_std=0.3),
}


def twin_logits(model, ids):
    """(t, V), from the specification."""
    flat, V, D, T, t = model.params.flat, model.vocab_size, model.n_embd, model.block_size, len(ids)
    batch = ids, ids, np.arange(t), np.ones(t)
    if isinstance(model, fl.GPT):
        twin = reference.GPTStep(flat, V, D, T, model.n_layer, model.n_head)
        twin.forward(*batch)
        return twin.logits
    twin = reference.BigramStep(flat, V, D, T, t)
    twin.forward(*batch)
    return twin._logits


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("t", range(1, 8))
def test_logits_of_ids_equal_the_twins(model, t):
    ids = np.random.default_rng(t).integers(0, model.vocab_size, t)
    logits = model.logits(ids.tolist())
    assert (logits.shape, logits.dtype) == ((t, model.vocab_size), np.float64)
    np.testing.assert_allclose(logits, twin_logits(model, ids), rtol=0, atol=1e-13)
    assert model.logits(ids.astype(np.uint8)).tobytes() == logits.tobytes()
    # Each row sees what is before it, and nothing after.
    np.testing.assert_allclose(model.logits(ids[: max(1, t - 1)]), logits[: max(1, t - 1)], rtol=0, atol=1e-13)


def test_logits_of_documents_are_those_of_their_ids(model):
    docs = DOCS * 60         # more than are computed at a time
    every = model.logits(TOK, docs)
    assert [len(rows) for rows in every] == [min(len(doc) + 1, 7) for doc in docs]
    for doc, rows in zip(DOCS, every[-len(DOCS) :], strict=True):
        ids = [TOK.bos, *TOK.encode(doc)][:7]
        np.testing.assert_allclose(rows, model.logits(ids), rtol=0, atol=1e-13)


def test_probabilities_give_the_loss_that_evaluate_does(model):
    total = count = 0
    for doc, rows in zip(DOCS, model.probabilities(TOK, DOCS), strict=True):
        np.testing.assert_allclose(rows.sum(axis=1), 1.0, rtol=1e-14)
        targets = [*TOK.encode(doc), TOK.bos][:7]
        total -= np.log(rows[np.arange(len(targets)), targets]).sum()
        count += len(targets)
    assert fl.Trainer(model, tokenizer=TOK).evaluate(DOCS) == pytest.approx(total / count, rel=1e-13)
    losses = np.empty(2)
    reference.cross_entropy_forward(model.logits([0, 1]), np.array([1, 2]), losses)
    assert -np.log(model.probabilities([0, 1])[[0, 1], [1, 2]]) == pytest.approx(losses, rel=1e-13)


def test_logits_leave_the_model_and_a_step_by_hand_alone(model):
    own = fl.Trainer(model, fl.SGD(lr=0.1), tokenizer=TOK)
    plain = copy.deepcopy(own)
    for trainer in (own, plain):
        trainer.zero_grad()
        trainer.forward(trainer.batch(DOCS))
        if trainer is own:
            model.logits(TOK, DOCS)
        trainer.backward()
        trainer.step()
    assert own.model.params.flat.tobytes() == plain.model.params.flat.tobytes()


@pytest.mark.parametrize("arguments, error, words", [
    (([],), TypeError, "ids must be ints"),
    ((np.empty(0, int),), ValueError, r"ids has shape \(0,\), expected \(t,\) with t from 1 to 7"),
    (([0] * 8,), ValueError, r"ids has shape \(8,\)"),
    (([[0, 1]],), ValueError, r"ids has shape \(1, 2\)"),
    (([0, TOK.vocab_size + 3],), IndexError, r"ids\[1\] = \d+ is outside \[0, "),
    (([-1],), IndexError, r"ids\[0\] = -1 is outside"),
    (([2**40],), IndexError, r"ids\[0\] = \d+ is outside"),
    (([0.0],), TypeError, "ids must be ints"),
    ((["anna"],), TypeError, r"ids must be ints, got \['anna'\]; for documents pass \(tokenizer, docs\)"),
    ((TOK, "anna"), TypeError, "docs is one str"),
    ((TOK, []), ValueError, "docs is empty"),
    ((TOK, ["xyz"]), fl.DataError, "is not one of"),
    ((fl.CharTokenizer(["abcdefghijklmnop"]), ["a"]), fl.DataError, "the tokenizer has 17 ids"),
])
def test_what_has_no_logits_is_refused(model, arguments, error, words):
    for call in (model.logits, model.probabilities):
        with pytest.raises(error, match=words):
            call(*arguments)


def test_probabilities_of_extreme_logits():
    model = MODELS["bigram"]()
    model.params["lm_head"][...] = 0.0
    model.params["lm_head"][2] = 1e3 * np.sign(model.params["wte"][0] + model.params["wpe"][0])
    with np.errstate(all="raise"):
        assert model.probabilities([0])[0].tolist() == [0.0, 0.0, 1.0] + [0.0] * (model.vocab_size - 3)
    model.params["wte"][0] = np.nan
    with pytest.raises(FloatingPointError, match="the model's logits are not finite"):
        model.probabilities([0])


# --- safetensors

def test_a_model_and_its_tokenizer_come_back_from_a_file(model, tmp_path):
    pytest.importorskip("safetensors", reason="the extra safetensors is not installed")
    path, docs = tmp_path / "x.safetensors", [*DOCS, "é\u2028\ud800\x00\""]
    tok = fl.CharTokenizer(docs)
    model.save_safetensors(path, tok)
    again = type(model).from_safetensors(path)
    assert again.config == model.config
    assert again.params.flat.tobytes() == model.params.flat.tobytes()
    assert fl.CharTokenizer.from_safetensors(path) == tok
    assert again.generate(TOK, 5, seed=1) == model.generate(TOK, 5, seed=1)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_the_file_has_the_mode_of_any_other(mask, tmp_path):
    pytest.importorskip("safetensors", reason="the extra safetensors is not installed")
    before = os.umask(mask)
    try:
        MODELS["gpt"]().save_safetensors(tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("change, words", [
    ({"model": "BigramLM"}, "holds BigramLM, expected GPT"),
    ({"model": None}, "holds no model of fastloop, expected GPT"),
    ({"n_head": None}, r"its metadata do not give the sizes of a GPT \(KeyError\('n_head'\)\)"),
    ({"n_embd": "many"}, "its metadata do not give the sizes of a GPT"),
    ({"n_embd": str(10**9)}, r"wte \[\d+, 8\] and wpe \[7, 8\] of 15 tensors do not fit"),
    ({"block_size": "6"}, "do not fit"),
    ({"vocab_size": str(10**12)}, "do not fit"),
    ({"n_layer": str(10**9)}, "do not fit"),
    ({"n_layer": "1"}, "the tensors of the file and of GPT.* differ: layer1"),
    ({"n_head": "3"}, "n_embd = 8 must be a multiple of n_head = 3"),
    ({"n_head": "0"}, "n_head"),
])
def test_metadata_that_do_not_fit_are_refused_before_memory_is_allocated(change, words, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="the extra safetensors is not installed")
    model, path = MODELS["gpt"](), tmp_path / "x.safetensors"
    metadata = {"model": "GPT", **{name: str(value) for name, value in model.config.items()}, **change}
    numpy.save_file(dict(model.params), path, {name: value for name, value in metadata.items() if value is not None})
    with pytest.raises(ValueError, match=words):
        fl.GPT.from_safetensors(path)


@pytest.mark.parametrize("text, words", [
    (None, "its metadata hold no tokenizer"), ("{", "Expecting"), (json.dumps({"type": "bpe"}), "not a CharTokenizer"),
    ("[]", "hold no tokenizer that is known here"), ("[" * 9999, "recursion"),
])
def test_a_file_without_a_tokenizer_brings_none(text, words, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="the extra safetensors is not installed")
    path = tmp_path / "x.safetensors"
    numpy.save_file({"a": np.zeros(1)}, path, None if text is None else {"tokenizer": text})
    with pytest.raises(ValueError, match=words):
        fl.CharTokenizer.from_safetensors(path)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_damaged_safetensors_file_is_refused_with_its_name(size, tmp_path):
    pytest.importorskip("safetensors", reason="the extra safetensors is not installed")
    model, path = MODELS["gpt"](), tmp_path / "x.safetensors"
    model.save_safetensors(path, TOK)
    path.write_bytes(path.read_bytes()[:size])
    for read in (model.load_safetensors, fl.GPT.from_safetensors, fl.CharTokenizer.from_safetensors):
        with pytest.raises(ValueError, match=r"x\.safetensors: is not a complete safetensors file"):
            read(path)
    for read in (model.load_safetensors, fl.GPT.from_safetensors, fl.CharTokenizer.from_safetensors):
        with pytest.raises(IsADirectoryError, match=str(tmp_path)):
            read(tmp_path)


@pytest.mark.parametrize("other", [DOCS, "anna", 5, None, MODELS["bigram"]()], ids=repr)
def test_what_stands_in_a_tokenizers_place_is_named(other):
    model = MODELS["bigram"]()
    calls = [
        lambda: model.generate(other), lambda: model.logits(other, DOCS), lambda: model.probabilities(other, DOCS),
        lambda: fl.bigram_baseline(DOCS, tokenizer=other, block_size=3),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"tokenizer = .* must be a tokenizer, such as CharTokenizer|a tokenizer$"):
            call()
