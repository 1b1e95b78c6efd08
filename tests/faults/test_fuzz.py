"""Random command lines, data files, configurations and checkpoints: an exit status and one line, or success.

The command is called in this process: an exception that is not SystemExit would be a traceback.
"""

import functools
import json
import os
import re
import tempfile
from pathlib import Path

import cases
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fastloop as fl
from fastloop import checkpoint, flags, train

settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=100, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("nightly", settings.get_profile("ci"), derandomize=False, max_examples=2000, print_blob=True)
settings.load_profile("nightly" if cases.NIGHTLY else "ci")

QUICK = ["--steps=2", "--val-fraction=0", "--sample=1", "--threads=2"]


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run the command in an empty folder: (status, its lines on stderr)."""
    monkeypatch.chdir(tmp_path)
    threads = fl.get_num_threads()

    def run(*arguments):
        try:
            status = train.main(list(arguments))
        except SystemExit as error:
            status = error.code
        out, err = capfd.readouterr()
        assert status in (0, 1, 2), (status, out, err)      # 1: diverged
        assert (err == "") == (status == 0), (status, err)
        assert err.count("\n") <= 1, err
        assert "Traceback" not in err
        return status, err

    yield run
    fl.set_num_threads(threads)


# Numbers around every limit, and words that are not numbers.  Nothing here asks for a large model or a long run.
NUMBERS = st.one_of(
    st.integers(-3, 9).map(str), st.floats(-2.0, 2.0).map(str),
    st.sampled_from(["nan", "inf", "-inf", "1e-320", "1e308"]),
)
NAMES = st.text(max_size=4).filter(lambda text: "/" not in text)       # of files, which stay in the folder
WORDS = st.one_of(NUMBERS, NAMES, st.sampled_from(["a.npz", ".", "é"]))
VALUES = {
    flag: st.one_of(st.sampled_from(kind), WORDS) if isinstance(kind, tuple) else
    st.one_of(NUMBERS, NUMBERS, WORDS) if kind is not str else WORDS
    for flag, (kind, *_) in flags.ALL_FLAGS.items() if kind is not bool
}
FLAGS = st.one_of(
    *[value.map(lambda text, flag=flag: f"--{flag}={text}") for flag, value in VALUES.items()],
    st.sampled_from([f"--{flag}" for flag, (kind, *_) in flags.ALL_FLAGS.items() if kind is bool]),
    st.sampled_from([f"--no-{flag}" for flag, (kind, *_) in flags.ALL_FLAGS.items() if kind is bool]),
    st.text(max_size=5),
)
SLOW = re.compile(r"--(steps|epochs|batch-size)=\+?\d{3}")      # nothing wrong with these, but they take their time


@example(arguments=["--export=--"])
@example(arguments=["--export="])
@example(arguments=["--lr-end=1e308"])        # the parameters stay finite, the logits do not
@given(arguments=st.lists(FLAGS, min_size=1, max_size=6))
def test_random_command_lines(arguments, command):
    if any(SLOW.match(argument) for argument in arguments):
        return
    command(*QUICK, *arguments)


@given(
    content=st.one_of(
        st.binary(max_size=60), st.text(max_size=40).map(str.encode), st.text("ab\r\n \0\ufeff").map(str.encode),
    ),
    flags=st.lists(st.sampled_from([
        "--format=text", "--model=gpt", "--block-size=3", "--val-fraction=0.5", "--encoding=utf-16",
        "--encoding=latin-1", "--encoding=utf-8-sig", "--shuffle", "--epochs=1", "--overfit-one-batch",
    ]), max_size=3, unique=True),
)
def test_random_data_files(content, flags, command, tmp_path):
    (tmp_path / "data").write_bytes(content)
    command(*QUICK, "--data=data", *flags)


QUICK_KEYS = [key for key in flags.ALL_FLAGS if key not in ("steps", "epochs", "batch-size")]
KEYS = st.one_of(st.sampled_from(QUICK_KEYS), st.text(max_size=5))
TOML_VALUES = st.one_of(
    st.integers(-5, 9), st.floats(), st.booleans(), st.text("abc.\\\"'#\n", max_size=5),
    st.lists(st.integers(), max_size=2), st.just({}),
)


@given(table=st.dictionaries(KEYS, TOML_VALUES, max_size=3))
def test_random_configurations(table, command, tmp_path):
    text = "\n".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items())
    (tmp_path / "run.toml").write_text(text.replace("NaN", "nan").replace("Infinity", "inf"))
    command(*QUICK, "--config=run.toml")


@given(content=st.one_of(st.binary(max_size=60), st.text("ab=[]{}\"'#.\n1", max_size=30).map(str.encode)))
def test_random_bytes_as_a_configuration(content, command, tmp_path):
    (tmp_path / "run.toml").write_bytes(content)
    command(*QUICK, "--config=run.toml")


# Checkpoints forged with a valid checksum: whatever is wrong in them must be refused as well.


def load(path):
    """Load it: refused with the file's name and a reason, or a trainer that saves, evaluates and goes on."""
    try:
        trainer = fl.Trainer.load(path)
    except fl.CheckpointError as error:
        assert str(path) in str(error)      # noqa: PT017 (it need not be raised)
        return False
    trainer.save(path)
    try:
        trainer.evaluate(cases.DOCS)
        trainer.resume(cases.DOCS, validation=cases.DOCS[:5])
    except (ValueError, TypeError, fl.DivergenceError):     # other data, no tokenizer, a NaN: said, and nothing crashes
        pass
    return True


@functools.cache        # not a fixture: Hypothesis would print its bytes
def saved():
    """A checkpoint's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = cases.make("bigram", clip_norm=1.0)
        trainer.fit(cases.DOCS, steps=5, validation=cases.DOCS[:5], restore_best=True)
        trainer.history.seconds[:] = 0.0        # the same bytes in every session
        trainer.save(f"{folder}/run.npz")
        return Path(folder, "run.npz").read_bytes()


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Thousands of files are written here, none of which need outlive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def signed(body):
    return body + checkpoint.MARK + checkpoint.digest(body)


@given(changes=st.lists(st.tuples(st.floats(0.0, 1.0, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_bytes_changed_and_signed(changes, tmp_path):
    body = bytearray(saved()[: -checkpoint.COMMENT])
    for place, value in changes:
        body[int(place * len(body))] = value
    path = tmp_path / "changed.npz"
    path.write_bytes(signed(bytes(body)))
    load(path)


@given(content=st.binary(max_size=300))
def test_random_bytes_signed(content, tmp_path):
    path = tmp_path / "random.npz"
    path.write_bytes(signed(content))
    assert not load(path)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 40), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=4,
)


def places(meta, path=()):
    """Every place in a tree of dicts and lists."""
    yield path
    inner = meta.items() if isinstance(meta, dict) else enumerate(meta) if isinstance(meta, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


@given(data=st.data())
def test_descriptions_changed(data, tmp_path):
    path = tmp_path / "changed.npz"
    path.write_bytes(saved())
    arrays, meta = checkpoint.read(path)
    for _ in range(data.draw(st.integers(1, 3))):
        *way, key = data.draw(st.sampled_from([place for place in places(meta) if place]))
        parent = meta
        for step in way:
            parent = parent[step]
        parent[key] = data.draw(JSON)
    if meta.get("format") == checkpoint.FORMAT:
        del meta["format"]
    checkpoint.write(path, arrays, meta)
    load(path)


@functools.cache
def saved_by_the_command():
    with tempfile.TemporaryDirectory() as folder:
        assert train.main([*QUICK, "--quiet", f"--save={folder}/run.npz"]) == 0
        return Path(folder, "run.npz").read_bytes()


# Not the files, of which the command says that it does not write them again.
STORED = st.one_of(st.sampled_from(list(flags.ALL_FLAGS)), st.text(max_size=3)).filter(
    lambda flag: flag not in flags.FLAGS["files"]
).map(lambda flag: flag.replace("-", "_"))


@given(changes=st.dictionaries(STORED, JSON, min_size=1, max_size=2))
def test_stored_arguments_changed(changes, command, tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(saved_by_the_command())
    arrays, meta = checkpoint.read(path)
    meta["notes"]["arguments"] |= {"save": None, **changes}
    del meta["format"]
    checkpoint.write(path, arrays, meta)
    command("--resume=run.npz")


ARRAYS = st.sampled_from([
    np.zeros(0), np.zeros(3), np.zeros((2, 3)), np.full((24, 5), np.nan), np.zeros(()), np.zeros(5, "S3"),
    np.zeros((24, 5), np.float32), np.zeros((24, 5), np.complex128), np.zeros((24, 5), "U2"), np.zeros(5, bool),
    np.arange(5), np.zeros(2, [("a", "f8")]),
])


@given(data=st.data())
def test_arrays_changed(data, tmp_path):
    path = tmp_path / "changed.npz"
    path.write_bytes(saved())
    arrays, meta = checkpoint.read(path)
    name = data.draw(st.sampled_from(list(arrays)))
    if data.draw(st.booleans()):
        arrays[name] = data.draw(ARRAYS)
    else:
        del arrays[name]
    checkpoint.write(path, arrays, meta)
    load(path)
