"""Checkpoints: everything comes back, a resumed run has the same bits, and a damaged file is refused."""

import io
import os
import stat
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import fastloop as fl
from fastloop import checkpoint, codec

DOCS = fl.load_docs()[:30]
TOK = fl.CharTokenizer(DOCS)
STEPS = 20


def make(optimizer="adam"):
    optimizer = {
        "adam": lambda: fl.Adam(lr=0.01),
        "adamw": lambda: fl.AdamW(lr=0.01, no_decay=["wpe"]),
        "sgd": lambda: fl.SGD(lr=0.1),
        "momentum": lambda: fl.SGD(lr=0.1, momentum=0.9, nesterov=True),
    }[optimizer]()
    model = fl.BigramLM(TOK.vocab_size, n_embd=4)
    return fl.Trainer(model, optimizer, tokenizer=TOK, schedule=fl.schedules.linear(), clip_norm=1.0, grad_accum=2)


def fit(trainer, **options):
    return trainer.fit(
        DOCS, steps=STEPS, batch_size=2, shuffle=True, seed=3, validation=DOCS[:5], eval_every=4, restore_best=True,
        **options,
    )


class SaveAt:
    """Saves after one step, as a run that is killed then would have."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_step(self, trainer):
        if trainer.steps == self.step:
            trainer.save(self.path)


def state(trainer):
    arrays, meta = codec.pack_fit(trainer.last_fit)
    del arrays["history/seconds"]
    optimizer = [trainer.optimizer.flats[slot].flat.tobytes() for slot in trainer.optimizer.slots]
    meta["history"].pop("stop_reason")
    return (
        trainer.model.params.flat.tobytes(), optimizer, trainer.steps, trainer.optimizer.t,
        {name: a.tobytes() for name, a in arrays.items()}, meta,
    )


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "momentum"])
def test_a_run_resumed_at_any_step_has_the_bits_of_one_without_a_break(optimizer, tmp_path):
    whole = make(optimizer)
    fit(whole)
    for stop in range(1, STEPS):
        trainer = make(optimizer)
        path = tmp_path / f"{stop}.npz"
        fit(trainer, callbacks=[SaveAt(stop, path)])
        resumed = fl.Trainer.load(path)
        resumed.resume(DOCS, validation=DOCS[:5])
        assert state(resumed) == state(whole), stop


def test_a_fresh_process_resumes_to_the_same_bits(tmp_path):
    whole, trainer = make(), make()
    fit(whole)
    fit(trainer, callbacks=[SaveAt(9, tmp_path / "run.npz")])
    code = (
        "import sys, fastloop as fl\n"
        "trainer = fl.Trainer.load(sys.argv[1])\n"
        "docs = fl.load_docs()[:30]\n"
        "trainer.resume(docs, validation=docs[:5])\n"
        "sys.stdout.buffer.write(trainer.model.params.flat.tobytes())\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "run.npz"], capture_output=True, check=True)
    assert run.stdout == whole.model.params.flat.tobytes()


def test_fit_keeps_the_last_and_the_best(tmp_path):
    trainer = make()
    history = fit(trainer, save=tmp_path / "run.npz", save_every=5)
    assert sorted(os.listdir(tmp_path)) == ["run.best.npz", "run.npz"]
    best = fl.Trainer.load(tmp_path / "run.best.npz")
    losses = [loss for _, loss in history.evaluations]
    assert best.steps == 4 * (1 + int(np.argmin(losses)))
    assert best.evaluate(DOCS[:5]) == min(losses)
    assert fl.Trainer.load(tmp_path / "run.npz").steps == STEPS


def test_other_data_are_refused(tmp_path):
    trainer = make()
    fit(trainer, callbacks=[SaveAt(9, tmp_path / "run.npz")])
    resumed = fl.Trainer.load(tmp_path / "run.npz")
    with pytest.raises(fl.CheckpointError, match="not the data"):
        resumed.resume(DOCS[::-1])
    with pytest.raises(fl.CheckpointError, match="no run to go on"):
        make().resume(DOCS)


def test_a_schedule_of_the_users_own_must_be_given_again(tmp_path):
    trainer = fl.Trainer(fl.BigramLM(TOK.vocab_size), tokenizer=TOK, schedule=lambda step: 0.5)
    trainer.save(tmp_path / "run.npz")
    with pytest.raises(fl.CheckpointError, match="schedule"):
        fl.Trainer.load(tmp_path / "run.npz")
    assert fl.Trainer.load(tmp_path / "run.npz", schedule=lambda step: 0.5).schedule(3) == 0.5


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.npz"
    checkpoint.write(path, {"a": np.arange(3.0)}, {"x": 1})
    return path.read_bytes()


def test_a_file_cut_short_anywhere_is_refused(small, tmp_path):
    path = tmp_path / "cut.npz"
    for n in range(len(small)):
        path.write_bytes(small[:n])
        with pytest.raises(fl.CheckpointError, match=r"cut\.npz"):
            checkpoint.read(path)


def test_a_file_with_any_bit_flipped_is_refused(small, tmp_path):
    path = tmp_path / "flipped.npz"
    for i in range(len(small)):
        for bit in range(8):
            damaged = bytearray(small)
            damaged[i] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(fl.CheckpointError):
                checkpoint.read(path)
    path.write_bytes(small + b"\n")
    with pytest.raises(fl.CheckpointError):
        checkpoint.read(path)
    path.write_bytes(small)
    arrays, meta = checkpoint.read(path)
    assert arrays["a"].tolist() == [0.0, 1.0, 2.0]
    assert meta == {"format": 2, "x": 1}


def test_numpy_reads_the_arrays(tmp_path):
    trainer = make()
    trainer.save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as archive:
        assert np.array_equal(archive["params/wte"], trainer.model.params["wte"])


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    checkpoint.write(tmp_path / "new.npz", {}, {})
    monkeypatch.undo()
    with pytest.raises(fl.CheckpointError, match="format 99"):
        fl.Trainer.load(tmp_path / "new.npz")


def test_a_pickle_is_never_loaded(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        checkpoint.write(tmp_path / "x.npz", {"a": np.array([print], object)}, {})
    assert os.listdir(tmp_path) == []


def test_parts_that_overlap_are_refused_though_the_checksum_is_right(tmp_path):
    """One part under many names, so that a small file would fill the memory."""
    path = tmp_path / "run.npz"
    checkpoint.write(path, {"a": np.zeros(1000)}, {})
    buffer = io.BytesIO(path.read_bytes()[: -checkpoint.COMMENT - 2] + b"\0\0")
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.filelist += archive.filelist[-1:] * 50
        archive.comment = b"x"
        archive.comment = b""
    body = buffer.getvalue()[:-2] + struct.pack("<H", checkpoint.COMMENT)
    path.write_bytes(body + checkpoint.MARK + checkpoint.digest(body))
    with pytest.raises(fl.CheckpointError, match="its members overlap"):
        checkpoint.read(path)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_an_error_while_writing_leaves_the_old_file(call, tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    checkpoint.write(path, {"a": np.zeros(2)}, {"old": True})

    def fail(*args):
        raise OSError(28, "No space left on device")

    if call == "write":
        monkeypatch.setattr(checkpoint, "digest", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="space") as caught:
        checkpoint.write(path, {"a": np.ones(2)}, {"old": False})
    monkeypatch.undo()
    if call != "write":         # in which the file is not met yet
        assert caught.value.filename == str(path)
    assert checkpoint.read(path)[1]["old"] is True
    assert os.listdir(tmp_path) == ["run.npz"]


def test_where_no_file_can_be_made_the_error_names_the_file_asked_for(tmp_path):
    path = tmp_path / "no" / "run.npz"
    with pytest.raises(FileNotFoundError) as caught:
        checkpoint.write(path, {}, {})
    assert str(caught.value) == f"[Errno 2] No such file or directory: {str(path)!r}"


def test_a_name_as_long_as_a_name_can_be_is_saved_to(tmp_path):
    for name in ("x" * 251 + ".npz", "\u00e4" * 125 + ".npz"):
        make().save(tmp_path / name)
        fl.Trainer.load(tmp_path / name)
        assert os.listdir(tmp_path) == [name]
        os.remove(tmp_path / name)


@pytest.mark.parametrize("odd", ["too long", "folder"])
def test_where_the_best_cannot_be_saved_fit_says_so_before_the_first_step(odd, tmp_path):
    name = "x" * 251 if odd == "too long" else "run"
    if odd == "folder":
        (tmp_path / "run.best.npz").mkdir()
    trainer = make()
    with pytest.raises(OSError, match=r"too long|Is a directory") as caught:
        fit(trainer, save=tmp_path / f"{name}.npz")
    assert caught.value.filename == str(tmp_path / f"{name}.best.npz")
    assert trainer.steps == 0


WRITERS = {
    "checkpoint": lambda path: checkpoint.write(path, {}, {}),
    "save": lambda path: make().save(path),
    "fit": lambda path: make().fit(DOCS, steps=1, save=path),
    "save_safetensors": lambda path: fl.BigramLM(3).save_safetensors(path),
    "plot": lambda path: plotted().plot(path),
}


def plotted():
    history = fl.History()
    history.append(1.0)
    return history


@pytest.fixture(params=WRITERS)
def write(request):
    if request.param in ("save_safetensors", "plot"):
        name = {"plot": "matplotlib", "save_safetensors": "safetensors"}[request.param]
        pytest.importorskip(name, reason=f"{name} is not installed")
    return WRITERS[request.param]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_no_writer_replaces_a_device_a_pipe_or_a_folder(write, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("pipe.png")      # as to /dev/null, which root must not lose by this test
    before = sorted(os.listdir(tmp_path))
    for name, message in (("pipe", "a device or a pipe"), ("link", "a device or a pipe"), ("folder", "Is a directory")):
        with pytest.raises(OSError, match=message) as caught:
            write(tmp_path / f"{name}.png")
        assert caught.value.filename == str(tmp_path / f"{name}.png")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe.png").st_mode)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.skipif(not hasattr(os, "fchmod"), reason="needs the modes of POSIX")
def test_the_target_of_a_link_is_replaced_and_keeps_its_mode(write, tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "run.png", tmp_path / "link.png"
    link.symlink_to("folder/run.png")
    old = os.umask(0o027)
    try:
        write(link)                     # of a link that leads nowhere the target is made
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        for mode in (0o600, 0o666):
            target.write_bytes(b"old")
            target.chmod(mode)
            write(link)
            assert stat.S_IMODE(target.stat().st_mode) == mode
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert target.read_bytes() != b"old"
    assert os.listdir(tmp_path / "folder") == ["run.png"]
    assert sorted(os.listdir(tmp_path)) == ["folder", "link.png"]


@pytest.mark.skipif(not hasattr(os, "fchown") or os.geteuid() != 0, reason="only root may give files away")
def test_a_file_that_root_replaces_keeps_its_owner(tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(b"old")
    os.chown(path, 1234, 5678)
    checkpoint.write(path, {}, {})
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


def test_a_file_that_is_write_protected_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    path.write_bytes(b"old")
    path.chmod(0o444)
    if os.access(path, os.W_OK):        # root may do anything
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="write-protected"):
        checkpoint.write(path, {}, {})
    assert path.read_bytes() == b"old"


SAVES = """
import sys, threading
import numpy as np
from fastloop import checkpoint
def save(name):
    for i in range(150):
        checkpoint.write(sys.argv[1], {"a": np.full(1000 * (1 + i % 3), i)}, {"by": name})
threads = [threading.Thread(target=save, args=(f"{sys.argv[2]}{i}",)) for i in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_and_processes_that_save_to_one_path_never_leave_a_torn_file(tmp_path):
    path = tmp_path / "run.npz"
    checkpoint.write(path, {"a": np.zeros(1)}, {"by": "nobody"})
    arguments = [sys.executable, "-c", SAVES, str(path)]
    processes = [subprocess.Popen([*arguments, name], stderr=subprocess.PIPE, text=True) for name in "xy"]
    seen = set()
    while any(process.poll() is None for process in processes):
        arrays, meta = checkpoint.read(path)        # raises CheckpointError for a file that is not whole
        assert (arrays["a"] == arrays["a"][0]).all()
        seen.add(meta["by"])
    for process in processes:
        assert process.communicate() == (None, "")
        assert process.returncode == 0
    assert len(seen - {"nobody"}) > 1
    assert os.listdir(tmp_path) == ["run.npz"]


def test_a_file_that_describes_something_else_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    checkpoint.write(path, {}, {"hello": 1})
    with pytest.raises(fl.CheckpointError, match="does not describe"):
        fl.Trainer.load(path)
    make().save(path)
    arrays, meta = checkpoint.read(path)
    for change in (
        lambda a, m: a.pop("params/wte"),
        lambda a, m: a.update({"params/wte": np.zeros(3)}),
        lambda a, m: a.update({"extra": np.zeros(3)}),
        lambda a, m: m["model"].update({"class": "__import__"}),
        lambda a, m: m["model"].update({"n_embd": -1}),
        lambda a, m: m["optimizer"].pop("lr"),
        lambda a, m: m.update({"tokenizer": {"type": "char", "chars": 5}}),
    ):
        changed, description = dict(arrays), {k: dict(v) if isinstance(v, dict) else v for k, v in meta.items()}
        change(changed, description)
        checkpoint.write(path, changed, description)
        with pytest.raises(fl.CheckpointError):
            fl.Trainer.load(path)


COUNT, INDEX = (2.5, "2", True, 0, -1, None, {}), (-1, 0.0, False, None)
WRONG = {
    "steps": COUNT, "n_examples": COUNT, "batch_size": COUNT, "accumulate": COUNT, "eval_every": COUNT,
    "seed": INDEX, "fingerprint": INDEX, "start": INDEX, "stale": INDEX,
    "patience": [0, 1.0, "1"], "best_step": [-1, 3.0], "best_loss": ["1", True], "tol": ["1", False],
    "validation_fingerprint": [-1, 1.0, "x"],
    "min_delta": [None, "0", True], "epochs": [1, None], "restore_best": [0, "yes"], "order": ["none", None, 1],
    "held_out": [-0.1, 1, "0.2", True],
}


def test_a_run_of_wrong_settings_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    trainer = make()
    fit(trainer)
    trainer.save(path)
    arrays, meta = checkpoint.read(path)
    del meta["format"]
    assert WRONG.keys() | {"history"} == meta["run"].keys()
    for name, values in WRONG.items():
        for value in values:
            checkpoint.write(path, arrays, {**meta, "run": {**meta["run"], name: value}})
            with pytest.raises(fl.CheckpointError, match=f"{name} = "):
                fl.Trainer.load(path)


@pytest.mark.parametrize("classes", [["a"], [0, 0, 1], [[0, 1, 2]], {"a": 1}, "abc", 3, [0, None, 1], ["a", "b", 2]])
def test_classes_that_do_not_fit_the_model_are_refused(tmp_path, classes):
    path = tmp_path / "run.npz"
    trainer = fl.Trainer(fl.SoftmaxRegression(2, 3))
    trainer.save(path)
    arrays, meta = checkpoint.read(path)
    assert meta.pop("format") == 2
    assert meta["classes"] is None
    checkpoint.write(path, arrays, {**meta, "classes": classes})
    with pytest.raises(fl.CheckpointError, match="does not describe a trainer"):
        fl.Trainer.load(path)


VALUES = [
    None, True, False, 0, -1, 7, 1.5, -0.5, float("nan"), float("inf"), -float("inf"), 2**63, 10**400, "", "x",
    "\ud800", [], [1, 2], [0.5, 0.5, 0.5], {}, {"name": "linear"}, {"class": "Adam"},
]
NULLABLE = {
    "clip_norm", "clip_value", "run", "patience", "tol", "validation_fingerprint", "stop_reason", "steps", "held_out",
}


def places(table, path=()):
    for name, value in table.items():
        yield (*path, name), value
        if isinstance(value, dict) and name != "notes":
            yield from places(value, (*path, name))


def put(table, path, value):
    """A copy of table with that value at path."""
    name, *rest = path
    return {**table, name: put(table[name], rest, value) if rest else value}


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_each_entry_of_a_wrong_kind_is_refused_though_the_checksum_is_right(optimizer, tmp_path):
    path, trainer = tmp_path / "run.npz", make(optimizer)
    trainer.notes = {"a": 1}
    fit(trainer)
    trainer.save(path)
    arrays, meta = checkpoint.read(path)
    loaded = set()
    for place, old in places(meta):
        for value in VALUES:
            if place == ("format",):
                continue
            checkpoint.write(path, arrays, put(meta, place, value))
            try:
                other = fl.Trainer.load(path)
            except fl.CheckpointError:
                continue
            other.save(path)            # what is let in can go out again
            fl.Trainer.load(path)
            kinds = {type(old), *((int,) if type(old) is float else ()), *((type(None),) * (place[-1] in NULLABLE))}
            assert type(value) in kinds or old is None or place[0] == "notes", (place, value)
            loaded.add((*place, repr(value)))
        short = dict(meta)
        if len(place) == 1 and place != ("format",):
            del short[place[0]]
            checkpoint.write(path, arrays, short)
            with pytest.raises(fl.CheckpointError):
                fl.Trainer.load(path)
    assert ("steps", "-1") not in loaded
    assert ("optimizer", "t", "1.5") not in loaded
    assert ("tokenizer", "None") not in loaded
    assert ("run", "tol", "nan") not in loaded
    assert ("run", "start", "7") not in loaded          # the history would be longer than the run
    assert ("notes", "[1, 2]") in loaded


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_each_array_of_a_wrong_kind_is_refused_though_the_checksum_is_right(optimizer, tmp_path):
    path, trainer = tmp_path / "run.npz", make(optimizer)
    fit(trainer)
    trainer.save(path)
    arrays, meta = checkpoint.read(path)
    for name, old in arrays.items():
        kinds = [t for t in (np.float64, np.float32, ">f8", np.complex128, np.int64, np.uint64, bool, "U8", "S8")
                 if np.dtype(t) != old.dtype]
        wrong = [np.zeros(old.shape).astype(kind) for kind in kinds]
        wrong += [old[:-1], old[..., None], np.concatenate([old, old]), old.reshape(-1)[0], old[:0], old[None]]
        first = name.split("/")[0]
        if first.startswith(("exp_avg", "momentum")):
            wrong += [np.full_like(old, value) for value in (np.nan, np.inf, -np.inf)]
        if first == "exp_avg_sq" or name.endswith("evaluation_step"):
            wrong.append(np.full_like(old, -1))
        for array in wrong:
            checkpoint.write(path, {**arrays, name: array}, meta)
            with pytest.raises(fl.CheckpointError):
                fl.Trainer.load(path)
        checkpoint.write(path, {key: array for key, array in arrays.items() if key != name}, meta)
        with pytest.raises(fl.CheckpointError):
            fl.Trainer.load(path)
    checkpoint.write(path, {**arrays, "params/wte": np.full_like(arrays["params/wte"], np.nan)}, meta)
    assert np.isnan(fl.Trainer.load(path).model.params["wte"]).all()        # SECURITY.md says that they may be


def test_other_validation_data_are_noticed(tmp_path):
    path = tmp_path / "run.npz"
    fit(make(), callbacks=[SaveAt(9, path)])
    with pytest.raises(fl.CheckpointError, match="not the validation data"):
        fl.Trainer.load(path).resume(DOCS, validation=DOCS[:4])
    for validation in (None, DOCS[:5]):
        trainer = fl.Trainer.load(path)
        trainer.resume(DOCS, validation=validation)
        assert trainer.steps == STEPS


@pytest.mark.parametrize("model", [lambda: fl.BigramLM(5, n_embd=4), lambda: fl.GPT(5, n_embd=8, n_head=2, n_layer=2)])
def test_safetensors_there_and_back(model, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="the extra safetensors is not installed")
    one, other = model(), model()
    other.params.flat[:] = 0.0
    one.save_safetensors(tmp_path / "x.safetensors")
    read = numpy.load_file(tmp_path / "x.safetensors")
    assert list(read) == sorted(one.params) or set(read) == set(one.params)
    assert all(np.array_equal(read[name], array) for name, array in one.params.items())
    other.load_safetensors(tmp_path / "x.safetensors")
    assert np.array_equal(one.params.flat, other.params.flat)
    numpy.save_file({**read, "extra": np.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="differ: extra"):
        other.load_safetensors(tmp_path / "y.safetensors")
    numpy.save_file({**read, "wte": np.zeros((5, 3))}, tmp_path / "z.safetensors")
    other.params.flat[:] = 7.0
    with pytest.raises(ValueError, match=r"wte has shape \(5, 3\)"):
        other.load_safetensors(tmp_path / "z.safetensors")
    assert (other.params.flat == 7.0).all()


def test_a_plain_numpy_forward_pass_reads_an_exported_gpt(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="the extra safetensors is not installed")
    D, H = 16, 4
    tok = fl.CharTokenizer(DOCS)
    model = fl.GPT(tok.vocab_size, n_embd=D, n_head=H, block_size=16)
    fl.Trainer(model, fl.Adam(lr=0.01), tokenizer=tok).fit(DOCS, steps=20)
    model.save_safetensors(tmp_path / "gpt.safetensors")
    w = numpy.load_file(tmp_path / "gpt.safetensors")

    def norm(x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)

    ids = [tok.bos, *tok.encode(DOCS[0])]
    T = len(ids)
    x = norm(w["wte"][ids] + w["wpe"][:T])
    h = norm(x)
    q, k, v = (
        (h @ w[f"layer0.attn_{name}"].T).reshape(T, H, D // H).transpose(1, 0, 2) for name in ("wq", "wk", "wv")
    )
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(D // H)
    scores[:, np.triu_indices(T, 1)[0], np.triu_indices(T, 1)[1]] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    x = x + (p @ v).transpose(1, 0, 2).reshape(T, D) @ w["layer0.attn_wo"].T
    x = x + np.maximum(norm(x) @ w["layer0.mlp_fc1"].T, 0) @ w["layer0.mlp_fc2"].T
    logits, next_logits = x @ w["lm_head"].T, model.stepper()
    for position, token in enumerate(ids):
        (got,) = next_logits(np.array([token]), position)
        np.testing.assert_allclose(got, logits[position], rtol=0, atol=1e-12)


def test_a_whole_file_of_another_content_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    checkpoint.write(path, {"a": np.zeros(3)}, {"much": "x" * 100})
    monkeypatch.setattr(checkpoint, "META_LIMIT", 100)
    with pytest.raises(fl.CheckpointError, match=r"not a fastloop checkpoint \(its description has 125 bytes"):
        checkpoint.read(path)
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "META", "other.json")
    with pytest.raises(fl.CheckpointError, match="not a fastloop checkpoint"):
        checkpoint.read(path)
