"""The callbacks: what they write, to a terminal and to files, also where a run breaks off or is resumed."""

import builtins
import io
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastloop as fl
from fastloop import callbacks
from fastloop.callbacks import JsonLog, Progress, TensorBoard

DOCS = fl.load_docs()
TOK = fl.CharTokenizer(DOCS)


def make_trainer():
    model = fl.BigramLM(TOK.vocab_size)
    return fl.Trainer(model, fl.Adam(lr=0.01), tokenizer=TOK, schedule=fl.schedules.linear(), clip_norm=0.5)


def fit(*callbacks, steps=100, log_every=10, **arguments):
    trainer = make_trainer()
    trainer.fit(DOCS[:200], steps=steps, log_every=log_every, callbacks=callbacks, **arguments)
    return trainer


def read(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def no_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)


# --- JsonLog

def test_json_log(tmp_path):
    path = tmp_path / "run.jsonl"
    trainer = fit(JsonLog(path), validation=DOCS[:20], eval_every=50)
    history, lines = trainer.history, read(path)
    assert [line["event"] for line in lines[:2]] == ["start", "log"]
    assert lines[0] == {
        "event": "start", "step": 0, "total_steps": 100, "model": repr(trainer.model),
        "optimizer": repr(trainer.optimizer),
    }
    logs = [line for line in lines if line["event"] == "log"]
    assert [log["step"] for log in logs] == [1, *range(10, 101, 10)]
    before = 0
    for log in logs:
        step = log["step"]
        assert log["loss"] == history.loss[before:step].mean()
        assert log["loss_steps"] == step - before
        assert log["clipped"] == history.clipped[before:step].sum()
        assert (log["lr"], log["norm"], log["seconds"]) == tuple(
            getattr(history, name)[step - 1] for name in ("lr", "norm", "seconds")
        )
        assert log["total_steps"] == 100
        before = step
    assert sum(log["clipped"] for log in logs) == history.clipped.sum() > 0
    assert logs[-1]["predictions"] == history.predictions
    spent = logs[-1]["seconds"] - logs[-2]["seconds"]
    assert logs[-1]["per_second"] == (logs[-1]["predictions"] - logs[-2]["predictions"]) / spent
    assert [(line["step"], line["loss"]) for line in lines if line["event"] == "evaluate"] == history.evaluations
    assert lines[-1] == {
        "event": "end", "step": 100, "stop_reason": "finished", "seconds": history.seconds[-1],
        "predictions": history.predictions,
    }


def test_json_log_adds_to_the_file_of_a_broken_run(tmp_path):
    path = tmp_path / "run.jsonl"
    fit(JsonLog(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])                       # killed in the middle of a line
    fit(JsonLog(path))
    first, second = path.read_bytes()[: len(whole) - 20], path.read_bytes()[len(whole) - 20 :]
    assert first == whole[:-20]
    assert second.startswith(b'\n{"event": "start"')
    assert [json.loads(line)["event"] for line in second.splitlines()[1:]] == ["start", *["log"] * 11, "end"]


def test_json_log_of_a_resumed_run(tmp_path):
    path, run = tmp_path / "run.jsonl", tmp_path / "run.npz"

    class Stop:
        def on_log(self, trainer):
            if trainer.steps == 50:
                trainer.stop("enough")

    fit(JsonLog(path), Stop(), save=run)
    trainer = fl.Trainer.load(run)
    trainer.resume(DOCS[:200], log_every=10, callbacks=[JsonLog(path)])
    lines = read(path)
    assert [(line["event"], line["step"]) for line in lines] == [
        ("start", 0), ("log", 1), *(("log", step) for step in range(10, 51, 10)), ("end", 50),
        ("start", 50), *(("log", step) for step in range(60, 101, 10)), ("end", 100),
    ]
    assert lines[6]["loss"] == trainer.history.loss[40:50].mean()
    assert lines[9]["loss"] == trainer.history.loss[50:60].mean()


def test_json_log_of_values_that_json_does_not_have(tmp_path):
    log = JsonLog(tmp_path / "run.jsonl")
    log.on_evaluate(None, 3, float("nan"))
    log.on_evaluate(None, 4, float("inf"))
    log.on_evaluate(None, 5, 0.1 + 0.2)
    log.file.close()
    assert [line["loss"] for line in read(log.path)] == [None, None, 0.30000000000000004]


def test_json_log_is_whole_after_every_event(tmp_path):
    path, seen = tmp_path / "run.jsonl", []

    class Look:
        def on_log(self, trainer):
            seen.append(len(read(path)))
            if trainer.steps == 30:
                raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fit(JsonLog(path), Look())
    assert seen == [2, 3, 4, 5]
    *before, last = read(path)
    assert len(before) == 5
    assert (last["event"], last["stop_reason"]) == ("end", "RuntimeError")


def test_json_log_where_nothing_can_be_written(tmp_path):
    trainer = make_trainer()
    with pytest.raises(FileNotFoundError):
        trainer.fit(DOCS, steps=10, log_every=1, callbacks=[JsonLog(tmp_path / "no" / "run.jsonl")])
    assert trainer.steps == 0


# --- Progress

LINE = r"step +{step}/100  mean loss \d\.\d{{4}}{val}  lr 0\.\d{{6}}  norm \d\.\d{{3}}  [\d,]+ tokens/s"


def test_progress_into_a_file_is_a_plain_line_for_each_log(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    trainer = fit(Progress(), validation=DOCS[:20], eval_every=50)
    lines = out.getvalue().splitlines()
    assert len(lines) == 11
    for line, step in zip(lines, [1, *range(10, 101, 10)], strict=True):
        evaluated = trainer.history.evaluations[:step // 50][-1:]       # step 50 is evaluated before its line
        val = "".join(f"  val {loss:.4f}" for _, loss in evaluated)
        assert re.fullmatch(LINE.format(step=step, val=val), line), line
    assert f"mean loss {trainer.history.loss[90:].mean():.4f}  val" in lines[-1]
    assert f"  lr {trainer.history.lr[-1]:.6f}" in lines[-1]


@pytest.mark.usefixtures("no_tqdm")
def test_progress_on_a_terminal_writes_one_line_over_and_over(monkeypatch):
    monkeypatch.setattr("fastloop.threads.Pace.choose", lambda self, count: (1, count))    # no short chunk for a trial
    monkeypatch.setattr("fastloop.callbacks.REDRAW_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()
    fit(Progress(out))
    text = out.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    drawn = text[:-1].split("\r\x1b[K")
    assert drawn[0] == ""
    assert len(drawn) == 12
    for line, step in zip(drawn[1:], [1, *range(10, 101, 10)], strict=True):
        assert re.fullmatch(LINE.format(step=step, val="") + r"  \d:\d\d:\d\d left", line), line
    assert drawn[-1].endswith("0:00:00 left")


@pytest.mark.usefixtures("no_tqdm")
@pytest.mark.parametrize("columns, shown", [
    (200, "step 100/100  {losses}  lr 0.000100  norm {norm}  {speed} tokens/s  0:00:00 left"),
    (85, "step 100/100  {losses}  lr 0.000100  norm {norm}  0:00:00 left"),
    (75, "step 100/100  {losses}  lr 0.000100  0:00:00 left"),
    (60, "step 100/100  {losses}  0:00:00 left"), (45, "step 100/100  {losses}"), (40, "{losses}"), (10, "mean loss"),
])
def test_a_narrow_terminal_keeps_the_losses_and_is_not_redrawn_all_the_time(columns, shown, monkeypatch):
    monkeypatch.setattr("fastloop.callbacks.REDRAW_SECONDS", 1000.0)
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Terminal()
    history = fit(Progress(out), validation=DOCS[:20]).history
    _, drawn = out.getvalue()[:-1].split("\r\x1b[K")        # the last
    shown = shown.format(
        losses=f"mean loss {history.loss.mean():.4f}  val {history.evaluations[-1][1]:.4f}",
        norm=f"{history.norm[-1]:.3f}", speed=re.sub(r".* ([\d,]+) tokens/s.*|.*", r"\1", drawn),
    )
    assert drawn == shown


@pytest.mark.usefixtures("no_tqdm")
def test_progress_on_a_terminal_moves_on_between_logs(monkeypatch):
    """A model whose steps take seconds would else show nothing for minutes."""
    monkeypatch.setattr("fastloop.callbacks.REDRAW_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()

    class EveryStep:
        def on_step(self, trainer):
            pass

    trainer = fit(Progress(out), EveryStep(), steps=130, log_every=1000)
    drawn = out.getvalue()[:-1].split("\r\x1b[K")[1:]
    assert len(drawn) == 130
    assert drawn[119].startswith(f"step 120/130  mean loss {trainer.history.loss[20:120].mean():.4f}")


class Says:
    def __init__(self, progress):
        self.progress = progress

    def on_log(self, trainer):
        if len(trainer.history) == 100:
            self.progress.say("hello")


@pytest.mark.usefixtures("no_tqdm")
def test_printed_text_stands_above_the_progress_line(monkeypatch):
    monkeypatch.setattr("fastloop.callbacks.REDRAW_SECONDS", 1000.0)
    monkeypatch.setenv("COLUMNS", "200")
    progress = Progress(Terminal())
    fit(progress, Says(progress))
    drawn = progress.out.getvalue().split("\r\x1b[K")
    assert drawn[1].startswith("step 100/100")
    assert drawn[2] == f"hello\n{drawn[1]}\n"
    progress = Progress(io.StringIO())
    fit(progress, Says(progress))
    assert progress.out.getvalue().splitlines()[-1] == "hello"


@pytest.mark.parametrize("x, digits, small, text", [
    (0.01, 6, 1e-5, "0.010000"), (0.0, 6, 1e-5, "0.000000"), (1e-7, 6, 1e-5, "1.00e-07"), (1e6, 6, 1e-5, "1.00e+06"),
    (3.29187, 4, 0.0, "3.2919"), (1e-9, 4, 0.0, "0.0000"), (99999.0, 3, 0.0, "99999.000"), (2e150, 4, 0.0, "2.00e+150"),
    (float("nan"), 4, 0.0, "nan"), (float("inf"), 4, 0.0, "inf"),
])
def test_numbers_of_any_size_keep_the_line_short(x, digits, small, text):
    assert callbacks.fixed(x, digits, small) == text


def test_callbacks_are_called_without_log_every(tmp_path):
    trainer = make_trainer()
    trainer.fit(DOCS[:200], steps=250, callbacks=[JsonLog(tmp_path / "run.jsonl")])
    assert [line["step"] for line in read(tmp_path / "run.jsonl") if line["event"] == "log"] == [1, 100, 200, 250]


def test_the_time_that_is_left():
    progress = Progress()
    progress.began = (100, 0, 5.0)
    assert progress.left({"step": 200, "total_steps": 400, "seconds": 105.0}) == "0:03:20 left"
    assert progress.left({"step": 101, "total_steps": 10_101, "seconds": 6.0}) == "2:46:40 left"
    assert progress.left({"step": 100, "total_steps": 100, "seconds": 5.0}) == "0:00:00 left"


def test_progress_through_tqdm():
    pytest.importorskip("tqdm", reason="needs the extra progress: pip install 'fastloop[progress]'")
    out, threads = Terminal(), threading.active_count()
    trainer = fit(Progress(out, unit="letters"), validation=DOCS[:20], eval_every=50)
    last = re.split(r"[\r\n]", out.getvalue().rstrip())[-1]
    assert ": 100%" in last
    assert "100/100" in last
    assert f"loss {trainer.history.loss.mean():.4f}" in last
    assert f"val {trainer.history.evaluations[-1][1]:.4f}" in last
    assert threading.active_count() == threads


def test_the_losses_stay_where_tqdm_has_little_room(monkeypatch):
    tqdm = pytest.importorskip("tqdm", reason="needs the extra progress: pip install 'fastloop[progress]'")
    monkeypatch.setattr(tqdm.std, "_screen_shape_wrapper", lambda: lambda file: (60, 20))
    out = Terminal()
    trainer = fit(Progress(out), validation=DOCS[:20], eval_every=50)
    last = re.split(r"[\r\n]", out.getvalue().rstrip())[-1]
    val = trainer.history.evaluations[-1][1]
    assert last.startswith(f"mean loss {trainer.history.loss.mean():.4f}  val {val:.4f}: 100%")
    assert len(last) <= 60


def test_progress_of_a_resumed_run(no_tqdm, tmp_path):
    class Stop:
        def on_log(self, trainer):
            trainer.stop("enough")

    fit(Stop(), save=tmp_path / "run.npz", log_every=50)
    out = io.StringIO()
    fl.Trainer.load(tmp_path / "run.npz").resume(DOCS[:200], log_every=50, callbacks=[Progress(out)])
    assert re.findall(r"step +(\d+)/100", out.getvalue()) == ["50", "100"]


# --- TensorBoard

def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard: pip install 'fastloop[tensorboard]'")
    trainer = fit(TensorBoard(tmp_path / "events"), validation=DOCS[:20], eval_every=50)
    (file,) = (tmp_path / "events").iterdir()
    values = events(file)
    assert set(values) == {"loss/train", "loss/validation", "lr", "norm", "clipped", "per_second"}
    assert [step for step, _ in values["lr"]] == [1, *range(10, 101, 10)]
    np.testing.assert_allclose([x for _, x in values["lr"]], trainer.history.lr[[0, *range(9, 100, 10)]], rtol=1e-6)
    assert values["loss/train"][-1][1] == pytest.approx(trainer.history.loss[90:].mean(), rel=1e-6)
    assert values["loss/validation"] == [(s, pytest.approx(x, rel=1e-6)) for s, x in trainer.history.evaluations]


def test_tensorboard_has_what_came_before_a_failure(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard: pip install 'fastloop[tensorboard]'")
    code = """
import fastloop as fl
class Break:
    def on_log(self, trainer):
        if trainer.steps == 30:
            raise RuntimeError("broken")
X = [1.0, 2.0, 3.0]
trainer = fl.Trainer(fl.LinearRegression(1), fl.SGD(lr=0.01))
trainer.fit(X, X, steps=100, log_every=10, callbacks=[fl.callbacks.TensorBoard("events"), Break()])
"""
    path = {"PYTHONPATH": str(Path(fl.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=path)
    assert run.stderr.endswith("RuntimeError: broken\n")
    (file,) = (tmp_path / "events").iterdir()
    assert [step for step, _ in events(file)["lr"]] == [1, 10, 20, 30]


def events(file):
    """tag -> [(step, value)] of an event file: records of length, checksum, data, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, values = file.read_bytes(), {}
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        for value in event.summary.value:
            values.setdefault(value.tag, []).append((event.step, value.simple_value))
    return values


# --- all of them

def test_callbacks_leave_the_run_as_it_is(tmp_path, monkeypatch):
    plain = fit(log_every=0)
    watched = fit(JsonLog(tmp_path / "run.jsonl"), Progress(io.StringIO()), Progress(Terminal()))
    assert watched.model.params.flat.tobytes() == plain.model.params.flat.tobytes()
    assert watched.history.loss.tobytes() == plain.history.loss.tobytes()
    for callback in (JsonLog("x"), Progress()):
        assert not hasattr(callback, "on_step")


def test_importing_tqdm_fails_softly(monkeypatch):
    real = builtins.__import__

    def broken(name, *arguments, **keywords):
        if name == "tqdm":
            raise ImportError("broken")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", broken)
    out = Terminal()
    fit(Progress(out))
    assert "100/100" in out.getvalue()
