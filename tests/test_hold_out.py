"""A share of the data held out for validation, and X and y in one: what fit, evaluate and resume take as data."""

import numpy as np
import pytest

import fastloop as fl


class StopAfter:
    def __init__(self, steps):
        self.steps = steps

    def on_step(self, trainer):
        if trainer.steps == self.steps:
            trainer.stop("enough")


# A share held out

def held_out_jobs():
    """name -> (trainer, data and y as fit takes them, the same split by hand: data, y, validation)."""
    X, y = np.arange(20.0).reshape(10, 2), np.arange(10.0)
    held = sorted(int(i) for i in fl.split_docs([str(i) for i in range(10)], 0.3, 7)[1])
    kept = [i for i in range(10) if i not in held]
    docs = ["anna", "bob", "cab", "dan", "ed", "fay", "gus", "hal", "ida", "jo"]
    tok = fl.CharTokenizer(docs)
    text = "".join(docs) * 2

    def lines():
        return fl.Trainer(fl.BigramLM(tok.vocab_size), tokenizer=tok)

    def rows():
        return fl.Trainer(fl.MLP([2, 3, 1]))

    return {
        "documents": (lines, (docs,), ([docs[i] for i in kept], None, [docs[i] for i in held])),
        "an iterator": (lines, (iter(docs),), ([docs[i] for i in kept], None, [docs[i] for i in held])),
        "text": (lines, (text,), (text[:-17], None, text[-17:])),
        "rows": (rows, (X, y), (X[kept], y[kept], (X[held], y[held]))),
        "rows in one": (rows, ((X, y),), (X[kept], y[kept], (X[held], y[held]))),
    }


@pytest.mark.parametrize("job", held_out_jobs())
def test_a_share_held_out_is_the_split_made_by_hand(job):
    make, everything, (data, y, validation) = held_out_jobs()[job]
    trainer, expected = make(), make()
    settings = {"steps": 12, "batch_size": 2, "seed": 7, "eval_every": 3}
    trainer.fit(*everything, validation=np.float32(0.3) if job == "rows" else 0.3, **settings)
    expected.fit(data, y, validation=validation, **settings)
    assert np.array_equal(trainer.model.params.flat, expected.model.params.flat)
    assert trainer.history.evaluations == expected.history.evaluations
    assert len(trainer.history.evaluations) == 4


@pytest.mark.parametrize("job", ["documents", "text", "rows"])
@pytest.mark.parametrize("again", [None, 0.3])
def test_a_resumed_run_holds_out_the_same_share(job, again, tmp_path):
    make, everything, _ = held_out_jobs()[job]
    settings = {"steps": 12, "batch_size": 2, "seed": 7, "eval_every": 3, "patience": 9}
    whole, broken = make(), make()
    whole.fit(*everything, validation=0.3, **settings)
    broken.fit(*everything, validation=0.3, callbacks=[StopAfter(5)], **settings)
    broken.save(tmp_path / "run.npz")
    resumed = fl.Trainer.load(tmp_path / "run.npz")
    with pytest.raises(ValueError, match=r"validation = 0.2, but the run holds out the share 0.3 of its data"):
        resumed.resume(*everything, validation=0.2)
    history = resumed.resume(*everything, validation=again)
    assert history.evaluations == whole.history.evaluations
    assert np.array_equal(resumed.model.params.flat, whole.model.params.flat)


def test_a_resumed_run_that_held_out_nothing_holds_out_no_share():
    make, everything, _ = held_out_jobs()["documents"]
    trainer = make()
    trainer.fit(*everything, steps=9, callbacks=[StopAfter(5)])
    with pytest.raises(ValueError, match=r"validation = 0.3, but the run holds out no share"):
        trainer.resume(*everything, validation=0.3)


@pytest.mark.parametrize("share, message", [
    (0.0, "validation = 0"), (1, "validation = 1"), (True, "validation = True"), (-0.1, "validation = -0.1"),
    (float("nan"), "validation = nan"), (0.01, r"validation = 0.01 of (10|58) (documents|characters|rows) holds none"),
    (0.96, "leaves none to train on|holds no window of 8"),
])
@pytest.mark.parametrize("job", ["documents", "text", "rows"])
def test_a_share_that_leaves_nothing_is_refused(job, share, message):
    make, everything, _ = held_out_jobs()[job]
    trainer = make()
    before = trainer.model.params.flat.tobytes()
    with pytest.raises((TypeError, ValueError), match=message):
        trainer.fit(*everything, steps=3, validation=share)
    assert (trainer.model.params.flat.tobytes(), trainer.steps) == (before, 0)


def test_a_share_of_prepared_data_is_refused():
    make, everything, _ = held_out_jobs()["rows"]
    trainer = make()
    with pytest.raises(TypeError, match=r"validation = 0.3 cannot be taken from prepared data"):
        trainer.fit(trainer.prepare(*everything)[0], steps=1, validation=0.3)


def test_what_is_wrong_in_data_to_be_split_is_named_by_its_place_in_the_whole():
    trainer = held_out_jobs()["documents"][0]()
    with pytest.raises(fl.DataError, match=r"docs\[9\]\[1\] = '!'"):
        trainer.fit(["anna"] * 9 + ["a!"], steps=1, validation=0.3)
    labels = fl.Trainer(fl.SoftmaxRegression(1, 2))
    labels.fit(np.arange(9.0), ["a"] * 8 + ["b"], steps=1, validation=0.4)      # the b may be on either side
    assert labels.model.classes.tolist() == ["a", "b"]


# Both in one


def test_x_and_y_in_one_are_taken_wherever_data_are():
    X, y = np.arange(20.0).reshape(10, 2), np.arange(10.0)

    def make():
        return fl.Trainer(fl.MLP([2, 3, 1]))

    expected = make()
    expected.fit(X, y, steps=5, batch_size=3, validation=(X[:4], y[:4]))
    for both, validation in (((X, y), [X[:4], y[:4]]), ([X, y], (X[:4].tolist(), y[:4].tolist()))):
        trainer = make()
        trainer.fit(both, steps=5, batch_size=3, validation=validation)
        assert np.array_equal(trainer.model.params.flat, expected.model.params.flat)
        assert trainer.history.evaluations == expected.history.evaluations
        assert trainer.evaluate(both) == expected.evaluate(X, y)
    with pytest.raises(TypeError, match=r"y is missing \(or pass both as \(X, y\)\)"):
        make().fit([[1.0, 2.0], [3.0, 4.0]], steps=1)       # two rows of X


def test_documents_may_be_a_tuple_of_two():
    make, (docs,), _ = held_out_jobs()["documents"]
    trainer, expected = make(), make()
    trainer.fit(tuple(docs[:2]), steps=4, validation=("anna", "bob"))
    expected.fit(docs[:2], steps=4, validation=["anna", "bob"])
    assert np.array_equal(trainer.model.params.flat, expected.model.params.flat)
    assert trainer.history.evaluations == expected.history.evaluations
    assert trainer.evaluate(("anna", "bob")) == expected.evaluate(["anna", "bob"])
