"""One run at a time on a model: what would change it meanwhile is refused, what only reads it is not."""

import copy
import signal
import threading

import numpy as np
import pytest

import fastloop as fl
from fastloop import _core

DOCS = ["anna", "otto", "hannah", "bob", "elle", "nana", "toto"]
TOK = fl.CharTokenizer(DOCS)


def make(**options):
    return fl.Trainer(fl.GPT(TOK.vocab_size, n_embd=8, n_head=2), fl.Adam(lr=0.01), tokenizer=TOK, **options)


def parallel(*calls):
    """Call all at once in Python threads; what each returned, or raised."""
    out, start = [None] * len(calls), threading.Barrier(len(calls))

    def run(i):
        start.wait()
        try:
            out[i] = calls[i]()
        except Exception as error:
            out[i] = error

    threads = [threading.Thread(target=run, args=[i]) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


class At:
    """A callback that calls `what` with the trainer after the second step."""

    def __init__(self, what):
        self.what = what

    def on_step(self, trainer):
        if trainer.steps == 2:
            self.got = self.what(trainer)


MOVES = {
    "zero_grad()": lambda t, batch: t.zero_grad(),
    "forward()": lambda t, batch: t.forward(batch),
    "backward()": lambda t, batch: t.backward(),
    "clip_grad_norm()": lambda t, batch: t.clip_grad_norm(1.0),
    "clip_grad_value()": lambda t, batch: t.clip_grad_value(1.0),
    "step()": lambda t, batch: t.step(),
    "load_state_dict()": lambda t, batch: t.optimizer.load_state_dict(t.optimizer.state_dict()),
}
RUNS = {
    "fit()": lambda t, batch: t.fit(DOCS, steps=2),
    "resume()": lambda t, batch: t.resume(DOCS),
    "lr_find()": lambda t, batch: fl.lr_find(t, DOCS, steps=5),
}


@pytest.mark.parametrize("what", [*MOVES, *RUNS])
def test_in_a_callback_nothing_else_changes_the_model(what):
    plain, own = make(), make()
    plain.fit(DOCS, steps=6)
    batch = own.batch(DOCS)
    refused = pytest.raises(fl.OrderError, match=rf"^{what[:-2]}\(\) was called while fit\(\) is running on this model")

    def call(trainer):
        with refused:
            (MOVES | RUNS)[what](trainer, batch)

    own.fit(DOCS, steps=6, callbacks=[At(call)])
    assert own.model.params.flat.tobytes() == plain.model.params.flat.tobytes()
    assert own.history.loss.tolist() == plain.history.loss.tolist()


@pytest.mark.parametrize("what", ["zero_grad()", "forward()", "backward()", "step()", "fit()", "lr_find()"])
def test_in_a_callback_no_other_trainer_changes_the_model(what):
    own = make()
    other = fl.Trainer(own.model, fl.SGD(lr=0.1), tokenizer=TOK)
    batch = other.batch(DOCS)
    if what in ("backward()", "step()"):
        other.forward(batch)
    if what == "step()":
        other.backward()

    def call(_):
        words = "step" if what == "step()" else what[:-2]
        with pytest.raises(fl.OrderError, match=rf"{words}\(\) was called while fit\(\) is running on this model"):
            (MOVES | RUNS)[what](other, batch)

    own.fit(DOCS, steps=6, callbacks=[At(call)])
    plain = make()
    plain.fit(DOCS, steps=6)
    assert own.model.params.flat.tobytes() == plain.model.params.flat.tobytes()


def test_a_callback_evaluates_saves_and_generates(tmp_path):
    def look(trainer):
        trainer.save(tmp_path / "run.npz")
        return trainer.evaluate(DOCS), trainer.model.generate(TOK, 3, seed=1)

    own, at = make(), At(look)
    own.fit(DOCS, steps=5, callbacks=[at])
    loaded = fl.Trainer.load(tmp_path / "run.npz")
    assert (loaded.evaluate(DOCS), loaded.model.generate(TOK, 3, seed=1)) == at.got
    loaded.resume(DOCS)
    assert loaded.model.params.flat.tobytes() == own.model.params.flat.tobytes()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_ends_badly_releases_the_model(error):
    def fail(trainer):
        raise error

    own = make()
    with pytest.raises(error):
        own.fit(DOCS, steps=5, callbacks=[At(fail)])
    own.zero_grad()
    assert len(own.fit(DOCS, steps=3)) == 3
    with pytest.raises(fl.CheckpointError):
        own.resume(["otto"])
    assert len(fl.lr_find(own, DOCS, steps=5).lrs) == 5
    assert len(own.fit(DOCS, steps=3)) == 3


def test_of_several_threads_in_fit_one_trains_and_the_others_raise():
    own, plain = make(), make()
    plain.fit(DOCS, steps=4000)
    out = parallel(*[lambda: own.fit(DOCS, steps=4000)] * 3)
    told = [x for x in out if isinstance(x, fl.OrderError)]
    assert len(told) == 2
    assert {str(x) for x in told} == {
        "fit() was called while fit() is running on this model, expected after its end"
    }
    assert own.model.params.flat.tobytes() == plain.model.params.flat.tobytes()


def test_two_trainers_of_one_model_do_not_run_at_once():
    own = make()
    other = fl.Trainer(own.model, fl.SGD(lr=0.1), tokenizer=TOK)
    out = parallel(lambda: own.fit(DOCS, steps=4000), lambda: other.fit(DOCS, steps=4000))
    assert sum(isinstance(x, fl.OrderError) for x in out) == 1
    assert sum(isinstance(x, fl.History) for x in out) == 1


def test_while_a_thread_trains_another_neither_copies_nor_saves_nor_moves(tmp_path):
    own, running, end = make(), threading.Event(), threading.Event()

    class Wait:
        def on_chunk(self, trainer):
            running.set()
            end.wait(30)

    batch = own.batch(DOCS)
    thread = threading.Thread(target=own.fit, args=[DOCS], kwargs={"steps": 3, "callbacks": [Wait()]})
    thread.start()
    running.wait(30)
    try:
        for call in (
            lambda: own.save(tmp_path / "x.npz"), lambda: copy.deepcopy(own.model), own.zero_grad, own.step,
            lambda: copy.copy(own.optimizer), lambda: fl.lr_find(own, DOCS, steps=5), lambda: own.resume(DOCS),
            lambda: fl.gradcheck(own.model, batch),
        ):
            with pytest.raises(fl.OrderError, match=r"was called while fit\(\) is running on this model"):
                call()
        assert own.evaluate(DOCS) > 0.0
    finally:
        end.set()
        thread.join()
    assert not list(tmp_path.iterdir())
    assert own.steps == 3


def test_moves_in_two_threads_are_an_error_and_not_a_crash():
    """With batches so large, and so often, that the threads do collide."""
    own = fl.Trainer(fl.GPT(TOK.vocab_size, n_embd=64, block_size=8), fl.Adam(), tokenizer=TOK)
    batches = [own.batch(DOCS * n) for n in (40, 90)]

    refused = []

    def moves(batch):
        for i in range(1000):
            try:
                own.zero_grad()
                own.forward(batch)
                own.backward()
                own.step()
            except fl.OrderError as error:
                refused.append(str(error))
            if i >= 15 and len(refused) > 5:
                break

    assert parallel(*[lambda b=b: moves(b) for b in batches]) == [None, None]
    assert any("while another Python thread is in a call on the same object" in words for words in refused)
    own.zero_grad()
    assert np.isfinite(own.forward(batches[0]))


def test_steps_of_one_optimiser_in_two_threads_are_an_error_and_not_a_crash():
    w = np.zeros(2_000_000)
    optimizer, gradient = fl.Adam(params=[w]), np.ones_like(w)

    taken, refused = [], []

    def steps():
        for i in range(1000):
            try:
                optimizer.step([gradient])
                taken.append(i)
            except fl.OrderError as error:
                refused.append(str(error))
            if i >= 15 and refused:
                break

    assert parallel(steps, steps, steps) == [None] * 3
    assert optimizer.t == len(taken)
    (words,) = set(refused)
    assert words.startswith("step(grads) was called while another Python thread is in a call on the same object")


@pytest.mark.parametrize("make_model", [fl.BigramLM, fl.GPT])
def test_threads_that_generate_from_one_model_draw_the_same_samples_as_one_after_the_other(make_model):
    model = make_model(TOK.vocab_size, init_std=0.3)
    expected = [model.generate(TOK, 30, seed=seed) for seed in range(6)]
    for _ in range(3):
        out = parallel(*[lambda seed=seed: model.generate(TOK, 30, seed=seed) for seed in range(6)])
        assert out == expected


def test_a_generation_inside_another_changes_neither():
    model = fl.GPT(TOK.vocab_size, init_std=0.3)
    alone = [model.stepper()(np.array([i]), 0).tolist() for i in range(3)]
    first = model.stepper()
    kept = first(np.array([0]), 0)
    assert [model.stepper()(np.array([i]), 0).tolist() for i in range(3)] == alone
    assert kept.tolist() == alone[0]


@pytest.mark.parametrize("change", ["y", "X"])
def test_changing_the_arrays_during_fit_changes_nothing(change):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 2)), np.arange(20) % 3
    plain = fl.Trainer(fl.SoftmaxRegression(2, 3), fl.SGD(lr=0.1))
    plain.fit(X.copy(), y.copy(), steps=20, batch_size=5)

    def spoil(_):
        if change == "y":
            y[:] = 10**6
        else:
            X[:] = np.nan

    own = fl.Trainer(fl.SoftmaxRegression(2, 3), fl.SGD(lr=0.1))
    own.fit(X, y, steps=20, batch_size=5, callbacks=[At(spoil)])
    assert own.history.loss.tolist() == plain.history.loss.tolist()


def test_prepared_arrays_and_batches_keep_what_they_were_made_of():
    X, y = np.arange(6.0).reshape(6, 1), np.arange(6.0)
    own = fl.Trainer(fl.LinearRegression(1), fl.SGD(lr=0.1))
    data, _ = own.prepare(X, y)
    before = own.evaluate(data), data.fingerprint()
    X[:], y[:] = 7.0, -7.0
    assert (own.evaluate(data), data.fingerprint()) == before


def test_changing_the_documents_during_fit_changes_nothing():
    docs, plain = list(DOCS), make()
    plain.fit(DOCS, steps=9)
    own = make()
    own.fit(docs, steps=9, callbacks=[At(lambda _: docs.clear())])
    assert own.history.loss.tolist() == plain.history.loss.tolist()


def test_the_gate_names_the_first_of_two():
    gate = _core.variant.Gate()
    assert gate.close("lr_find()")
    assert not gate.close("fit()")
    assert gate.run == ("lr_find()", threading.get_ident())
    gate.open()
    assert gate.close("fit()")
    with pytest.raises(fl.OrderError, match=r"^lr_find\(\) was called while fit\(\) is running on this model"):
        gate.close("lr_find()")


@pytest.mark.parametrize("indices", [[0], [0] * 100_000])
def test_a_batch_that_is_filled_anew_needs_another_forward(indices):
    for trainer, data in ((make(), (DOCS,)), (fl.Trainer(fl.MLP([1, 3, 1])), ([1.0, 2.0], [1.0, 2.0]))):
        batch = trainer.batch(*data)
        trainer.zero_grad()
        trainer.forward(batch)
        batch.take(np.array(indices), 1.0)
        with pytest.raises(fl.OrderError, match=r"backward\(\) was called after take\(\) has filled the batch anew"):
            trainer.backward()
        assert not trainer.model.grads.flat.any()
        trainer.forward(batch)
        trainer.backward()


def test_a_batch_is_not_filled_while_another_thread_reads_it():
    trainer, ends = make(), threading.Event()
    batch = trainer.batch(DOCS)

    def fill():
        refused = set()
        while not ends.is_set():
            for n in (50, 20_000):
                try:
                    batch.take(np.zeros(n, np.int64), 1.0)
                except fl.OrderError as error:
                    refused.add(str(error))
        return refused

    def read():
        for _ in range(100):
            trainer.zero_grad()
            assert np.isfinite(trainer.forward(batch))
        ends.set()

    refused, _ = parallel(fill, read)
    what = "take() was called while another Python thread is in a call on the same object, expected after its end"
    assert refused <= {what}


def test_a_batch_without_examples_has_no_loss():
    trainer = make()
    batch = trainer.model.make_batch(trainer.prepare(DOCS)[0])
    for _ in range(2):
        with pytest.raises(ValueError, match="the batch is empty"):
            trainer.forward(batch)
        batch.take(np.arange(3), 1.0)
        assert trainer.forward(batch) > 0.0
        batch.take(np.arange(0), 1.0)


class Alarm(Exception):
    pass


def test_a_step_that_a_signal_interrupts_as_it_returns_has_been_taken():
    class Loop:
        def __init__(self, loop):
            self.loop = loop

        def __getattr__(self, name):
            return getattr(self.loop, name)

        def step(self, *arguments):
            self.loop.step(*arguments)
            raise Alarm     # as its handler does, before the line after the call

    trainer = make()
    trainer.forward(trainer.batch(DOCS))
    trainer.backward()
    trainer.loop = Loop(trainer.loop)
    with pytest.raises(Alarm):
        trainer.step()
    assert trainer.steps == trainer.optimizer.t == 1
    with pytest.raises(fl.OrderError, match=r"step\(\) was called after step\(\)"):
        trainer.step()


@pytest.mark.parametrize("call", range(4))
def test_the_users_handler_of_ctrl_c_is_restored_where_a_signal_interrupts_fit(call, monkeypatch):
    before, real, calls = signal.getsignal(signal.SIGINT), signal.signal, []

    def interrupted(*arguments):
        if call % 2:
            real(*arguments)
        calls.append(arguments)
        if len(calls) == 1 + call // 2:      # the first call sets the handler, the second restores it
            raise Alarm
        return real(*arguments)

    monkeypatch.setattr(signal, "signal", interrupted)
    with pytest.raises(Alarm):
        make().fit(DOCS, steps=3)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) == before
