"""History: the columns, smoothing, the sparkline, and exact ways to arrays, JSON, CSV and back."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

import fastloop as fl
from fastloop.history import History

AWKWARD = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.0**-1022, np.nan, np.inf, -np.inf, 3.0000000000000004]


def make(n=10, evaluations=((0, 3.5), (4, 1 / 3), (25, np.inf))):
    history = History(start_step=7)
    rng = np.random.default_rng(n)
    history.extend(
        loss=np.resize(AWKWARD, n), lr=rng.random(n), norm=rng.random(n) ** 50, clipped=rng.random(n) < 0.5,
        seconds=np.cumsum(rng.random(n)),
    )
    history.evaluations = list(evaluations)
    history.predictions, history.cut, history.stop_reason, history.interrupted = 123, 4, "patience", True
    return history


def assert_same(a, b):
    for name in History.columns:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        assert np.where(np.isnan(x), 0, 1).tolist() == np.where(np.isnan(y), 0, 1).tolist()
        kept = ~np.isnan(x)
        assert x[kept].tobytes() == y[kept].tobytes(), name        # 0.0 and -0.0 differ
    for name in History.scalars:
        assert getattr(a, name) == getattr(b, name)
        assert type(getattr(a, name)) is type(getattr(b, name))
    assert a.evaluations == b.evaluations
    assert all(type(step) is int and type(loss) is float for step, loss in b.evaluations)


# --- recording

def test_extend_grows_and_keeps_the_order():
    history = History()
    for size in (0, 1, 3, 10, 100):
        x = np.arange(len(history), len(history) + size, dtype=float)
        history.extend(loss=x, lr=-x, norm=x + 0.5, clipped=x % 2 == 1, seconds=2 * x)
    x = np.arange(114.0)
    assert len(history) == 114
    for name, expected in {"loss": x, "lr": -x, "norm": x + 0.5, "clipped": x % 2 == 1, "seconds": 2 * x}.items():
        np.testing.assert_array_equal(getattr(history, name), expected)
    assert history.clipped.dtype == bool
    assert history.mean_loss(4) == 111.5


def test_append_leaves_out_what_is_not_given():
    history = History()
    history.append(2.5)
    history.append(2.0, lr=0.1, norm=3.0, clipped=True, seconds=9.0)
    assert history.loss.tolist() == [2.5, 2.0]
    assert np.isnan(history.lr[0])
    assert np.isnan(history.norm[0])
    assert 0.0 <= history.seconds[0] < 60.0
    assert [history.lr[1], history.norm[1], history.clipped[1], history.seconds[1]] == [0.1, 3.0, True, 9.0]


def test_a_name_that_is_no_column():
    with pytest.raises(AttributeError, match="'losses'"):
        _ = History().losses


# --- smoothing and sparkline

@pytest.mark.parametrize("n, window", [(1, 1), (10, 1), (10, 3), (50, 7), (50, 50), (50, 1000)])
def test_smoothed_is_the_mean_of_a_trailing_window(n, window):
    history = History()
    loss = np.random.default_rng(n).random(n) + 1.0
    history.extend(loss=loss, lr=loss, norm=loss, clipped=loss > 2, seconds=loss)
    expected = [loss[max(0, i + 1 - window) : i + 1].mean() for i in range(n)]
    np.testing.assert_allclose(history.smoothed(window), expected, rtol=1e-13)


def test_smoothed_leaves_out_what_is_not_finite():
    history = History()
    for loss in (np.nan, 1.0, np.inf, 3.0, -np.inf, np.nan, 5.0):
        history.append(loss)
    np.testing.assert_array_equal(history.smoothed(2), [np.nan, 1.0, 1.0, 3.0, 3.0, np.nan, 5.0])
    with pytest.raises(ValueError, match="window = 0"):
        history.smoothed(0)
    assert History().smoothed().shape == (0,)


def test_smoothed_by_default_takes_a_twentieth():
    history = History()
    for i in range(100):
        history.append(i)
    np.testing.assert_array_equal(history.smoothed(), history.smoothed(5))
    assert history.smoothed()[-1] == 97.0


def test_sparkline_of_a_straight_line():
    history = History()
    for loss in np.arange(16.0)[::-1]:
        history.append(loss)
    assert history.sparkline(8) == "█▇▆▅▄▃▂▁"
    assert history.sparkline(8, ascii=True) == "@#*+=-._"
    assert len(history.sparkline()) == 16
    assert len(history.sparkline(5)) == 5


def test_sparkline_of_odd_runs():
    history = History()
    assert history.sparkline() == ""
    history.append(2.0)
    assert history.sparkline(60) == "▁"
    history.append(np.nan)
    assert history.sparkline() == "▁x"
    history.append(np.inf)
    history.append(4.0)
    assert history.sparkline() == "▁xx█"
    assert history.sparkline(2) == "▁█"
    with pytest.raises(ValueError, match="width = 0"):
        history.sparkline(0)
    history = History()
    history.append(np.nan)
    assert history.sparkline() == "x"


def test_losses_near_the_largest_float_warn_of_nothing():
    history = History()
    for _ in range(10):
        history.append(1e308)
    history.smoothed(3)
    assert len(history.sparkline(5)) == 5


# --- to and from files

@pytest.mark.parametrize("n", [0, 1, 10, 100])
def test_arrays_and_back(n):
    history = make(n)
    arrays, scalars = history.to_arrays()
    assert_same(history, History.from_arrays(arrays, json.loads(json.dumps(scalars))))
    arrays["loss"][:] = -1.0
    arrays["clipped"][:] = False
    assert_same(history, make(n))       # they were copies


def test_a_history_from_arrays_goes_on():
    history = History.from_arrays(*make(10).to_arrays())
    history.append(1.5)
    assert history.loss[-1] == 1.5
    assert_same(History.from_arrays(*history.to_arrays()), history)


def test_arrays_that_do_not_belong():
    arrays, scalars = make().to_arrays()
    with pytest.raises(ValueError, match=r"arrays of a history: got .*'norm', 'other'"):
        History.from_arrays({**arrays, "other": arrays["loss"]}, scalars)
    with pytest.raises(ValueError, match="scalars of a history"):
        History.from_arrays(arrays, {})
    with pytest.raises(ValueError, match=r"differ in length.*'norm': 9"):
        History.from_arrays({**arrays, "norm": arrays["norm"][:9]}, scalars)
    with pytest.raises(ValueError, match="differ in length"):
        History.from_arrays({**arrays, "evaluation_loss": arrays["evaluation_loss"][:1]}, scalars)


@pytest.mark.parametrize("n", [0, 1, 10, 100])
def test_json_and_back(n, tmp_path):
    history, path = make(n), tmp_path / "run.json"
    text = history.to_json()
    history.to_json(path)
    assert_same(history, History.from_json(text))
    assert_same(history, History.from_json(path))
    assert_same(history, History.from_json(str(path)))

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    data = json.loads(text, parse_constant=refuse)
    assert data["start_step"] == 7
    assert [x if isinstance(x, str) else float(x) for x in data["loss"]][:1] == AWKWARD[:1][:n]
    if n == 10:
        assert data["loss"][6:9] == ["NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize("text", ['{"format": "other"}', "{}", '{"loss": [1]}'])
def test_json_of_something_else(text):
    with pytest.raises(ValueError, match="not a history in JSON: format is"):
        History.from_json(text)


def test_json_that_is_cut_short():
    text = make().to_json()
    for end in range(1, len(text), 37):
        with pytest.raises(ValueError):
            History.from_json(text[:end])
    with pytest.raises(FileNotFoundError):
        History.from_json("no such file.json")


def test_csv(tmp_path):
    history, path = make(10), tmp_path / "run.csv"
    history.to_csv(path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "lr", "norm", "clipped", "seconds", "validation"]
    assert [int(row["step"]) for row in rows] == [0, *range(1, 11), 25]
    validation = {int(row["step"]): float(row["validation"]) for row in rows if row["validation"]}
    assert validation == dict(history.evaluations)
    steps = [row for row in rows if row["loss"]]
    assert len(steps) == 10
    for name in ("lr", "norm", "seconds"):
        assert [float(row[name]) for row in steps] == getattr(history, name).tolist()
    assert [row["loss"] for row in steps] == [repr(x) for x in AWKWARD]
    assert [int(row["clipped"]) for row in steps] == history.clipped.tolist()
    assert b"\r" not in path.read_bytes()


def test_a_run_of_the_trainer(tmp_path):
    docs = fl.load_docs()[:50]
    tok = fl.CharTokenizer(docs)
    trainer = fl.Trainer(fl.BigramLM(tok.vocab_size), tokenizer=tok, clip_norm=0.3)
    history = trainer.fit(docs, steps=30, validation=docs[:5], eval_every=10)
    assert [step for step, _ in history.evaluations] == [10, 20, 30]
    assert_same(history, History.from_json(history.to_json()))
    assert_same(history, History.from_arrays(*history.to_arrays()))


def test_importing_fastloop_imports_none_of_the_extras():
    code = "import sys, fastloop; print([m for m in ('matplotlib', 'tqdm', 'tensorboardX', 'csv') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_repr_of_a_history():
    history = History()
    assert repr(history) == "<History of 0 steps, running>"
    history.append(3.0)
    history.append(1.0)
    history.stop_reason = "finished"
    assert repr(history) == "<History of 2 steps, loss 3.0000 -> 2.0000, finished>"
