"""The Trainer: the moves and fit give the same bits, wrong orders and divergence change nothing."""

import hashlib
import json
import os
import re
import signal
import threading
import tracemalloc
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fastloop as fl
from fastloop import _core, codec
from fastloop.threads import MAX_THREADS, Pace, default_threads
from fastloop.trainer import Stage

DOCS = fl.load_docs()
TOK = fl.CharTokenizer(DOCS)


def make(lr=0.01, steps=100, optimizer=None, n_embd=16, block_size=8, seed=42, **options):
    model = fl.BigramLM(TOK.vocab_size, n_embd=n_embd, block_size=block_size, seed=seed)
    optimizer = optimizer or fl.Adam(lr=lr, betas=(0.85, 0.99))
    schedule = options.pop("schedule", fl.schedules.linear(steps))
    return fl.Trainer(model, optimizer, tokenizer=TOK, schedule=schedule, **options)


def digest(trainer):
    """A hash of parameters, gradients, moments and both step counts."""
    state = trainer.optimizer.state_dict()["state"]
    arrays = [trainer.model.params.flat, trainer.model.grads.flat]
    arrays += [entry[slot] for entry in state.values() for slot in trainer.optimizer.slots]
    counts = f"{trainer.steps} {trainer.optimizer.t}"
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays) + counts.encode()).hexdigest()


def by_hand(trainer, docs, steps, batch_size, clip=None):
    """The five moves, with the documents that fit would take."""
    losses, accumulate = [], trainer.grad_accum
    for step in range(steps):
        trainer.zero_grad()
        loss = 0.0
        for micro in range(accumulate):
            first = (step * accumulate + micro) * batch_size
            loss += trainer.forward(trainer.batch([docs[(first + i) % len(docs)] for i in range(batch_size)]))
            trainer.backward()
        losses.append(loss / accumulate)
        if clip is not None:
            trainer.clip_grad_norm(clip)
        trainer.step()
    return np.array(losses)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("optimizer", [fl.Adam, fl.AdamW, fl.SGD])
def test_the_moves_and_fit_give_the_same_bits(batch_size, clip, optimizer):
    one = make(optimizer=optimizer(lr=0.01), clip_norm=clip)
    many = make(optimizer=optimizer(lr=0.01), clip_norm=clip)
    history = many.fit(DOCS[:50], steps=60, batch_size=batch_size)
    losses = by_hand(one, DOCS[:50], 60, batch_size, clip)
    assert np.array_equal(losses, history.loss)
    assert np.array_equal(one.model.params.flat, many.model.params.flat)
    assert one.optimizer.t == many.optimizer.t == one.steps == many.steps == 60
    assert np.array_equal(history.clipped, history.norm > (clip or np.inf))
    assert clip is None or history.clipped.any()


COURSE = Path(__file__).parents[2] / "shared" / "data" / "names.txt"


@pytest.mark.parametrize("path", [None, COURSE], ids=["embedded", "course"])
def test_a_thousand_default_steps_follow_the_twin(path):
    from fastloop import reference

    if path is not None and not path.exists():
        pytest.skip("the course's 32,033 names are not beside the repository")
    docs = fl.load_docs(path)
    trainer = make(steps=1000)
    twin_model = fl.BigramLM(TOK.vocab_size)
    twin = reference.BigramStep(twin_model.params.flat, TOK.vocab_size, 16, 8)
    history = trainer.fit(docs, steps=1000)
    losses = []
    for step in range(1000):
        ids = [TOK.bos, *TOK.encode(docs[step]), TOK.bos][:9]
        inputs, targets = np.array(ids[:-1]), np.array(ids[1:])
        n = len(inputs)
        twin.zero_grad()
        losses.append(twin.forward(inputs, targets, np.arange(n), np.full(n, 1 / n)))
        twin.backward()
        twin.step(lr=0.01 * (1 - step / 1000), beta1=0.85, beta2=0.99, eps=1e-8)
    assert np.abs(history.loss - losses).max() < 1e-12
    np.testing.assert_allclose(trainer.model.params.flat, twin_model.params.flat, rtol=0, atol=1e-12)
    assert 3.2 < history.loss[0] < 3.4
    assert 2.2 < history.mean_loss(100) < 2.55


def test_micro_batches_give_the_bits_of_the_large_batch():
    large, small = make(), make(grad_accum=4)
    a = large.fit(DOCS[:50], steps=20, batch_size=8)
    b = small.fit(DOCS[:50], steps=20, batch_size=2)
    assert np.array_equal(large.model.params.flat, small.model.params.flat)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-15)


def test_a_last_partial_window_is_the_mean_over_its_documents():
    # 10 documents in steps of 2 x 3: an epoch is 6 + 4 documents, and the last micro-batch has one.
    small, large = make(grad_accum=2, schedule=fl.schedules.constant()), make(schedule=fl.schedules.constant())
    small.fit(DOCS[:10], epochs=1, batch_size=3)
    large.fit(DOCS[:6], steps=1, batch_size=6)
    large.fit(DOCS[6:10], steps=1, batch_size=4)
    assert np.array_equal(small.model.params.flat, large.model.params.flat)
    by_hand_small = make(grad_accum=3, schedule=fl.schedules.constant())
    for docs in (DOCS[:4], DOCS[4:8]):      # two of three
        by_hand_small.forward(by_hand_small.batch(docs))
        by_hand_small.backward()
    by_hand_small.step()
    large = make(schedule=fl.schedules.constant())
    large.fit(DOCS[:8], steps=1, batch_size=8)
    np.testing.assert_allclose(by_hand_small.model.grads.flat, gradient(DOCS[:8]), rtol=0, atol=1e-16)
    np.testing.assert_allclose(by_hand_small.model.params.flat, large.model.params.flat, rtol=0, atol=1e-14)


def gradient(docs):
    trainer = make()
    trainer.forward(trainer.batch(docs))
    trainer.backward()
    return trainer.model.grads.flat


@pytest.mark.parametrize(
    "moves, last, expected",
    [
        ("", "backward", "expected forward"),
        ("", "step", "expected backward"),
        ("f", "step", "after forward.*expected backward"),
        ("fb", "backward", "expected forward"),
        ("fbs", "step", "have been used"),
        ("fbs", "forward", "expected zero_grad"),
        ("fbs", "clip_grad_norm", "after step.*expected backward"),
        ("fbs", "backward", "expected forward"),
        ("fb", "forward", "expected step.*or zero_grad"),
        ("fbc", "forward", "expected step.*or zero_grad"),
        ("", "clip_grad_norm", "none to clip"),
        ("f", "clip_grad_norm", "none to clip"),
        ("f", "fit", "unfinished"),
        ("fb", "fit", "unfinished"),
        ("fb", "save", "unfinished"),
    ],
)
def test_a_wrong_order_is_refused_and_changes_nothing(moves, last, expected, tmp_path):
    trainer = make(clip_norm=1.0)
    trainer.fit(DOCS, steps=3)
    batch = trainer.batch(DOCS[:4])
    do = {"f": lambda: trainer.forward(batch), "b": trainer.backward, "s": trainer.step, "c": trainer.clip_grad_norm}
    for move in moves:
        do[move]()
    calls = {"forward": (batch,), "fit": (DOCS,), "save": (tmp_path / "x.npz",)}
    before = digest(trainer)
    with pytest.raises(fl.OrderError, match=expected):
        getattr(trainer, last)(*calls.get(last, ()))
    assert digest(trainer) == before
    trainer.zero_grad()         # from anywhere, a new step can begin
    trainer.forward(batch)
    trainer.backward()
    trainer.step()


BEFORE = {      # for each stage of a step, moves that lead there
    "NEW": "", "READY": "z", "FORWARD": "zf", "BACKWARD": "zfb", "CLIPPED": "zfbc", "STEPPED": "zfbcs",
}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("move, column", [
    ("forward", "forward"), ("backward", "backward"), ("clip_grad_norm", "clip"), ("clip_grad_value", "clip"),
    ("step", "step"), ("save", "whole_steps"), ("fit", "whole_steps"),
])
def test_every_move_may_follow_where_the_table_of_stages_says_so(stage, move, column, tmp_path):
    trainer = make(clip_norm=1.0)
    batch = trainer.batch(DOCS[:4])
    do = {
        "z": trainer.zero_grad, "f": lambda: trainer.forward(batch), "b": trainer.backward, "c": trainer.clip_grad_norm,
        "s": trainer.step,
    }
    for name in BEFORE[stage.name]:
        do[name]()
    if stage.name == "NEW":
        trainer.model.grads.flat[0] = 1.0
    arguments = {"forward": (batch,), "clip_grad_value": (1.0,), "fit": (DOCS,), "save": (tmp_path / "x.npz",)}
    call, refusal = partial(getattr(trainer, move), *arguments.get(move, ())), getattr(stage, column)
    if refusal is None:
        call()
    else:
        expected, why = refusal
        sentence = f"{move}() was called after {stage.last}, expected {expected}: {why.format(n=1)}"
        with pytest.raises(fl.OrderError) as caught:
            call()
        assert str(caught.value) == sentence


def test_accumulating_takes_as_many_batches_as_asked_for():
    trainer = make(grad_accum=2)
    batch = trainer.batch(DOCS[:4])
    for _ in range(2):
        trainer.forward(batch)
        trainer.backward()
    with pytest.raises(fl.OrderError, match="all 2 batches"):
        trainer.forward(batch)
    trainer.step()


def test_gradients_that_another_trainer_left_are_not_added_to():
    first = make()
    first.forward(first.batch(DOCS[:4]))
    first.backward()
    second = fl.Trainer(first.model, tokenizer=TOK)
    before = digest(second)
    with pytest.raises(fl.OrderError, match=r"forward\(\) was called after making the Trainer, expected zero_grad"):
        second.forward(second.batch(DOCS[:4]))
    assert digest(second) == before
    first.step()        # which the second has not changed
    second.zero_grad()
    second.forward(second.batch(DOCS[:4]))
    second.backward()
    grads = second.model.grads.flat.copy()
    second.zero_grad()
    second.forward(second.batch(DOCS[:4]))
    second.backward()
    assert np.array_equal(second.model.grads.flat, grads)


def test_forward_may_be_repeated():
    trainer = make()
    batch = trainer.batch(DOCS[:4])
    assert trainer.forward(batch) == trainer.forward(batch)
    trainer.backward()
    assert np.array_equal(trainer.model.grads.flat, gradient(DOCS[:4]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_leaves_the_parameters_alone(value):
    trainer = make()
    trainer.fit(DOCS, steps=5)
    trainer.model.params["lm_head"][3, 2] = value
    before = trainer.model.params.flat.tobytes()
    trainer.model.params["wte"][:] *= 1.0
    with pytest.raises(fl.DivergenceError, match=r"step 6: the loss is .*smaller lr") as caught:
        trainer.fit(DOCS, steps=5)
    assert trainer.model.params.flat.tobytes() == before
    assert caught.value.step == trainer.steps == trainer.optimizer.t == 5
    assert caught.value.history is trainer.history
    assert trainer.history.stop_reason == "diverged"
    with pytest.raises(fl.DivergenceError):
        trainer.forward(trainer.batch(DOCS[:1]))
    assert trainer.model.params.flat.tobytes() == before


@pytest.mark.parametrize("clip", [False, True])
def test_a_gradient_that_is_not_finite_is_caught_before_the_step(clip):
    trainer = make()
    trainer.forward(trainer.batch(DOCS[:4]))
    trainer.backward()
    trainer.model.grads["wpe"][0, 0] = np.nan
    before = digest(trainer)
    with pytest.raises(fl.DivergenceError, match="the gradient norm is nan"):
        trainer.clip_grad_norm(1.0) if clip else trainer.step()
    assert digest(trainer) == before


def test_clip_grad_norm_scales_to_the_norm():
    trainer = make()
    trainer.forward(trainer.batch(DOCS[:4]))
    trainer.backward()
    grads = trainer.model.grads.flat
    expected = np.linalg.norm(grads)
    assert trainer.clip_grad_norm(0.01) == pytest.approx(expected, rel=1e-14)
    assert np.linalg.norm(grads) == pytest.approx(0.01, rel=1e-14)
    assert trainer.clip_grad_norm(5.0) == pytest.approx(0.01, rel=1e-14)
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="max_norm"):
            trainer.clip_grad_norm(bad)


def test_clipping_by_value_by_hand_and_in_fit_gives_the_same_bits():
    one, many = make(), make(clip_value=0.01)
    history = many.fit(DOCS[:50], steps=40, batch_size=2)
    norms, clipped = [], []
    for step in range(40):
        one.zero_grad()
        one.forward(one.batch([DOCS[(2 * step + i) % 50] for i in range(2)]))
        one.backward()
        expected = np.clip(one.model.grads.flat, -0.01, 0.01)
        clipped.append(not np.array_equal(expected, one.model.grads.flat))
        norms.append(one.clip_grad_value(0.01))
        assert np.array_equal(one.model.grads.flat, expected)
        one.step()
    assert np.array_equal(one.model.params.flat, many.model.params.flat)
    assert np.array_equal(history.norm, norms)
    assert np.array_equal(history.clipped, clipped)
    with pytest.raises(fl.OrderError, match=r"clip_grad_value\(\) was called after step"):
        one.clip_grad_value(0.01)
    with pytest.raises(ValueError, match="give only one of them"):
        make(clip_norm=1.0, clip_value=1.0)


def test_linear_takes_its_length_from_fit():
    trainer = make(schedule=fl.schedules.linear())
    assert np.array_equal(trainer.fit(DOCS, steps=10).lr, 0.01 * (1 - np.arange(10) / 10))
    assert np.array_equal(trainer.fit(DOCS, steps=5).lr, 0.01 * (1 - np.arange(5) / 5))
    trainer.zero_grad()
    trainer.forward(trainer.batch(DOCS[:1]))
    trainer.backward()
    before = digest(trainer)
    with pytest.raises(ValueError, match=r"linear\(steps=1000\)"):
        trainer.step()
    assert digest(trainer) == before


def test_the_bits_do_not_depend_on_the_threads(many_threads):
    found = set()
    for threads in (1, 2, 3, 4, 8):
        fl.set_num_threads(threads)
        trainer = make(n_embd=64)
        trainer.fit(DOCS, steps=12, batch_size=256)
        found.add(trainer.model.params.flat.tobytes())
    assert len(found) == 1


def test_a_norm_below_the_limit_is_left_alone():
    trainer = make()
    trainer.zero_grad()
    trainer.forward(trainer.batch(DOCS[:4]))
    trainer.backward()
    before = trainer.model.grads.flat.copy()
    assert 0.0 < trainer.clip_grad_norm(1e3) < 1e3
    assert np.array_equal(trainer.model.grads.flat, before)


@pytest.mark.usefixtures("as_with_openmp")
@pytest.mark.parametrize("several, chosen", [(0.5, 4), (2.0, 1)])
def test_fit_takes_as_many_threads_as_are_faster(several, chosen):
    """One thread first, a short trial of all of them, then what was faster, and the other number again now and then."""
    before = fl.get_num_threads()
    fl.set_num_threads(4)
    try:
        taken = []
        with Pace() as pace:
            for _ in range(30):
                threads, count = pace.choose(80)
                asleep = threads == 4 and taken[-1][0] == 1
                pace.note(threads, 1e-3 * (5.0 if asleep else several if threads == 4 else 1.0), 10)
                taken.append((threads, count))
    finally:
        fl.set_num_threads(before)
    assert taken[:4] == [(1, 80), (4, 10), (4, 10), (chosen, 80)]
    others = [chunk for chunk, (threads, _) in enumerate(taken[3:], 4) if threads != chosen]
    assert others == ([19] if chosen == 4 else [19, 20])        # several must be woken first
    assert taken[18] == (5 - chosen, 10)


class EachStep:
    """Makes every step a chunk."""

    def on_step(self, trainer):
        pass


@pytest.mark.usefixtures("as_with_openmp")
def test_short_fits_learn_from_each_other_how_many_threads_to_take(monkeypatch):
    taken = []

    def note(self, threads, seconds, predictions, note=Pace.note):
        taken.append(threads)
        note(self, threads, predictions / threads, predictions)

    monkeypatch.setattr(Pace, "note", note)
    before = fl.get_num_threads()
    fl.set_num_threads(4)
    try:
        trainer = make()
        for batch_size in (2, 2, 8):        # steps of 8 examples have not been measured yet
            trainer.fit(DOCS, steps=4, batch_size=batch_size, callbacks=[EachStep()])
    finally:
        fl.set_num_threads(before)
    assert taken == [1, 4, 4, 4] + [4, 4, 4, 4] + [1, 4, 4, 4]


@pytest.mark.usefixtures("as_with_openmp")
def test_fit_leaves_the_number_of_threads_as_it_was(monkeypatch):
    calls = []
    fl.set_num_threads(3)
    monkeypatch.setattr(fl._core.variant, "set_max_threads", None)
    monkeypatch.setattr(fl._core.variant, "set_own_threads", calls.append)
    try:
        make().fit(DOCS, steps=3000)
    finally:
        monkeypatch.undo()
        fl.set_num_threads(default_threads())
    assert {1, 3} == set(calls[:-1])
    assert calls[-1] == MAX_THREADS


def test_two_trainers_in_two_threads_give_the_same_bits_as_one_after_the_other():
    alone = [make(seed=seed) for seed in (1, 2)]
    for trainer in alone:
        trainer.fit(DOCS, steps=2000)
    together = [make(seed=seed) for seed in (1, 2)]
    threads = [threading.Thread(target=trainer.fit, args=(DOCS,), kwargs={"steps": 2000}) for trainer in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a.model.params.flat, b.model.params.flat)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # Python warns of fork in a process with threads: the point
def test_a_forked_child_trains(many_threads):
    fl.set_num_threads(2)
    trainer = make(n_embd=64)
    trainer.fit(DOCS, steps=2, batch_size=256)      # starts the OpenMP threads, where there are any
    for _ in range(5):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            trainer.fit(DOCS, steps=2, batch_size=256)
            os._exit(0 if fl.get_num_threads() == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_may_have_threads_of_its_own(many_threads):
    fl.set_num_threads(2)
    expected = make(n_embd=64).fit(DOCS, steps=2, batch_size=256).loss
    for _ in range(20):
        make(n_embd=64).fit(DOCS, steps=2, batch_size=256)      # starts the threads again, where there are any
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(20)
                fl.set_num_threads(2)
                status = 0 if np.array_equal(make(n_embd=64).fit(DOCS, steps=2, batch_size=256).loss, expected) else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0


def test_no_memory_is_taken_inside_a_step():
    trainer = make()
    data, _ = trainer.prepare(DOCS)
    batch = trainer.model.make_batch(data)

    def peak(steps):
        indices, splits = np.arange(steps), np.arange(steps + 1)
        lrs, losses, norms = np.full(steps, 1e-3), np.empty(steps), np.empty(steps)
        trainer.loop.run(batch, indices, splits, 1, lrs, np.inf, losses, norms)      # the workspace
        tracemalloc.start()
        trainer.loop.run(batch, indices, splits, 1, lrs, np.inf, losses, norms)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(1000) <= peak(1) + 64


@pytest.fixture
def heeds_ctrl_c():
    """Handle Ctrl-C as in a terminal; background jobs of a shell script ignore it, and this process may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_the_run_at_a_whole_step(tmp_path):
    trainer = make(steps=10**9)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    history = trainer.fit(DOCS, steps=10**9, save=tmp_path / "run.npz")
    assert history.interrupted
    assert history.stop_reason == "interrupted"
    assert len(history) == trainer.steps == trainer.optimizer.t
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert fl.Trainer.load(tmp_path / "run.npz").steps == trainer.steps


def test_where_ctrl_c_is_ignored_a_run_ignores_it():
    class Press:
        def on_step(self, trainer):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        history = make().fit(DOCS, steps=3, callbacks=[Press()])
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(history) == 3
    assert history.stop_reason == "finished"


def test_history_has_an_entry_for_every_step():
    trainer = make(clip_norm=0.5)
    history = trainer.fit(DOCS, steps=250)
    for name in ("loss", "lr", "norm", "seconds"):
        column = getattr(history, name)
        assert column.dtype == np.float64
        assert column.shape == (250,)
        assert np.isfinite(column).all()
    assert np.array_equal(history.clipped, history.norm > 0.5)
    assert (np.diff(history.seconds) >= 0).all()
    assert history.predictions == sum(min(len(doc) + 1, 8) for doc in DOCS[:250])
    assert history.cut == sum(len(doc) + 1 > 8 for doc in DOCS)
    assert history.stop_reason == "finished"


def test_evaluate_is_the_mean_over_the_tokens():
    trainer = make(n_embd=5)
    trainer.fit(DOCS, steps=30)
    p = trainer.model.params
    before = digest(trainer)
    losses = []
    for doc in DOCS[:300]:
        ids = [TOK.bos, *TOK.encode(doc), TOK.bos][:9]
        for t, (i, j) in enumerate(pairwise(ids)):
            logits = p["lm_head"] @ (p["wte"][i] + p["wpe"][t])
            losses.append(np.log(np.exp(logits).sum()) - logits[j])
    assert trainer.evaluate(DOCS[:300]) == pytest.approx(np.mean(losses), rel=1e-13)
    assert digest(trainer) == before


def test_evaluate_between_the_moves_disturbs_nothing():
    trainer, other = make(), make()
    for one in (trainer, other):
        one.forward(one.batch(DOCS[:4]))
        if one is trainer:
            one.evaluate(DOCS[:2000])
        one.backward()
        one.step()
    assert np.array_equal(trainer.model.params.flat, other.model.params.flat)


def test_early_stopping_restores_the_best():
    trainer = make(lr=0.05, schedule=fl.schedules.constant())
    history = trainer.fit(
        DOCS[:20], steps=20000, validation=DOCS[1000:1200], eval_every=50, patience=3, restore_best=True
    )
    steps, losses = zip(*history.evaluations, strict=True)
    best = int(np.argmin(losses))
    assert history.stop_reason == "patience"
    assert len(losses) == best + 4
    assert steps[best] == 50 * (best + 1)
    assert trainer.evaluate(DOCS[1000:1200]) == losses[best]


def test_gains_below_min_delta_do_not_count():
    trainer = make(schedule=fl.schedules.constant())
    history = trainer.fit(DOCS[:20], steps=1000, validation=DOCS[:20], eval_every=1, patience=3, min_delta=10.0)
    losses = [loss for _, loss in history.evaluations]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 4
    assert (trainer.best_step, trainer.best_loss) == (1, losses[0])


def test_a_step_by_hand_is_no_part_of_a_run_that_was_stopped(tmp_path):
    class Stop:
        def on_step(self, trainer):
            if len(trainer.history) == 4:
                trainer.stop("enough")

    trainer = make()
    trainer.fit(DOCS, steps=10, callbacks=[Stop()])
    trainer.zero_grad()
    trainer.forward(trainer.batch(DOCS[:4]))
    trainer.backward()
    trainer.step()
    trainer.save(tmp_path / "run.npz")
    before = digest(trainer)
    for again in (trainer, fl.Trainer.load(tmp_path / "run.npz")):
        with pytest.raises(fl.OrderError, match=r"^resume\(\) was called 5 steps after the run began, expected"):
            again.resume(DOCS)
    assert digest(trainer) == before
    assert trainer.history.stop_reason == "enough"


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_an_interrupted_run_keeps_its_last_parameters_to_go_on_from():
    class Press:
        def on_evaluate(self, trainer, step, loss):
            self.params = trainer.model.params.flat.copy()
            if step == 4:
                signal.raise_signal(signal.SIGINT)

    press, trainer = Press(), make()
    history = trainer.fit(
        DOCS[:20], steps=9, validation=DOCS[:20], eval_every=2, min_delta=10.0, restore_best=True, callbacks=[press]
    )
    assert history.interrupted
    assert (trainer.steps, trainer.best_step) == (4, 2)
    assert np.array_equal(trainer.model.params.flat, press.params)


def test_tol_stops_when_the_loss_changes_by_less_in_an_epoch():
    trainer = make(lr=0.01, schedule=fl.schedules.constant())
    history = trainer.fit(DOCS[:40], epochs=10**6, batch_size=40, tol=1e-3)
    assert history.stop_reason == "converged"
    assert abs(history.loss[-1] - history.loss[-2]) < 1e-3 <= abs(history.loss[-2] - history.loss[-3])


def test_shuffling_visits_every_document_once_an_epoch():
    orders = []
    for shuffle in (False, True):
        sampler = fl.sampler.Sampler(10, 3, 1, "shuffled" if shuffle else "given", seed=5, epochs=True)
        indices, splits = sampler.take(0, 8)
        splits_of = splits.tolist()
        assert splits_of == [0, 3, 6, 9, 10, 13, 16, 19, 20]
        for epoch in (indices[:10], indices[10:]):
            assert sorted(epoch) == list(range(10))
        orders.append(indices.tolist())
        for chunk in (1, 3):        # the same, however the run is split and however many are looked up
            cut = [sampler.take(step, chunk) for step in range(0, 8 - chunk + 1, chunk)]
            parts = np.concatenate([indices[splits[0] : splits[-1]] for indices, splits in cut])
            assert parts.tolist() == orders[-1][: len(parts)]
            assert len(parts) == splits_of[8 // chunk * chunk]
    assert orders[0] == list(range(10)) * 2
    assert orders[1][:10] != orders[1][10:]


def test_generate_follows_the_models_distribution():
    trainer = make()
    trainer.fit(DOCS, steps=500)
    model = trainer.model
    assert model.generate(TOK, 5, seed=3) == model.generate(TOK, 5, seed=3)
    assert model.generate(TOK, 5, seed=3) != model.generate(TOK, 5, seed=4)
    first = [name[:1] for name in model.generate(TOK, 4000, seed=1)]
    (logits,) = model.stepper()(np.array([TOK.bos]), 0)
    p = np.exp(logits) / np.exp(logits).sum()
    for i in (0, 4, 12):
        expected = p[i]
        got = sum(c == TOK.chars[i] for c in first) / 4000
        assert abs(got - expected) < 5 * np.sqrt(expected / 4000)
    greedy = model.generate(TOK, 2, temperature=0.0)
    assert greedy[0] == greedy[1]
    assert greedy[0][:1] == TOK.decode([int(np.argmax(p))])
    with pytest.raises(ValueError, match="temperature"):
        model.generate(TOK, temperature=-1.0)


GENERATORS = {
    "bigram": lambda: fl.BigramLM(TOK.vocab_size, init_std=0.5),
    "gpt": lambda: fl.GPT(TOK.vocab_size, block_size=8, init_std=0.3),
}


def one_by_one(model, seed, n):
    """generate, a document at a time and a token at a time, from its specification."""
    rng, texts, next_logits = np.random.default_rng(seed), [], model.stepper()
    for _ in range(n):
        ids, u = [TOK.bos], rng.random(model.block_size)
        for position in range(model.block_size):
            (logits,) = next_logits(np.array([ids[position]]), position)
            p = np.exp((logits - logits.max()) / 0.8)
            cumulative = np.cumsum(p)
            ids.append(int(np.searchsorted(cumulative, u[position] * cumulative[-1], side="right")))
            if ids[-1] == TOK.bos:
                break
        texts.append(TOK.decode(ids))
    return texts


@pytest.mark.parametrize("make_model", GENERATORS.values(), ids=GENERATORS)
def test_documents_generated_together_equal_those_generated_one_by_one(make_model):
    model = make_model()
    names = model.generate(TOK, 61, 0.8, seed=3)
    assert names == one_by_one(model, 3, 61)
    assert len(set(map(len, names))) > 1        # some end before their neighbours
    for n in (0, 1, 7, 8, 9):
        assert model.generate(TOK, n, 0.8, seed=3) == names[:n]


@pytest.mark.parametrize("n", [-1, 2.5, True, None])
def test_numbers_of_documents_that_cannot_be_generated(n):
    with pytest.raises((TypeError, ValueError), match="n = "):
        make().model.generate(TOK, n)


@pytest.mark.parametrize("kind", ["bigram", "gpt"])
@pytest.mark.parametrize("prompt", ["", "the ca", "the cat sat on the mat"])
def test_a_text_goes_on_past_the_window(kind, prompt):
    text = "the cat sat on the mat.\nthe dog sat on the log.\n" * 40
    tok = fl.CharTokenizer([text])
    make_model = fl.GPT if kind == "gpt" else fl.BigramLM
    model = make_model(tok.vocab_size, block_size=8, seed=1)
    fl.Trainer(model, fl.Adam(lr=0.02), tokenizer=tok).fit(text, steps=300, batch_size=8)
    model.params["lm_head"][tok.bos] = 0.0      # BOS, which no window holds, would now be drawn if it could be
    texts = model.generate(tok, 10, seed=2, prompt=prompt, length=50)
    assert all(len(t) == len(prompt) + 50 and t.startswith(prompt) for t in texts)
    assert len(set(texts)) > 5
    assert texts[:3] == model.generate(tok, 3, seed=2, prompt=prompt, length=50)
    assert texts[0].startswith(model.generate(tok, 1, seed=2, prompt=prompt, length=20)[0])
    # Greedy, and from scratch at every token: the window is what generate says it is.
    (greedy,) = model.generate(tok, 1, 0.0, prompt=prompt, length=30)
    ids = tok.encode(prompt or "\n")
    first, next_logits = max(0, len(ids) - 8), model.stepper()
    for _ in range(30):
        if len(ids) - first > 8:
            first = len(ids) - 4
        for position, token in enumerate(ids[first:]):
            (logits,) = next_logits(np.array([token]), position)
        ids.append(int(logits[: tok.bos].argmax()))
    assert greedy == tok.decode(ids)[0 if prompt else 1 :]
    with pytest.raises(ValueError, match="length"):
        model.generate(tok, length=0)


def test_a_text_is_learnt_in_windows():
    text = "the cat sat on the mat and the dog sat on the log. " * 40
    tok = fl.CharTokenizer([text])
    model = fl.BigramLM(tok.vocab_size, n_embd=16, block_size=12)
    trainer = fl.Trainer(model, fl.Adam(lr=0.02), tokenizer=tok)
    history = trainer.fit(text, steps=600, batch_size=4)
    assert history.predictions == 600 * 4 * 12
    # A bigram-level model that sees the position too can only come near the counts, which it does.
    assert abs(trainer.evaluate(text) - fl.bigram_baseline(text, tokenizer=tok, block_size=12)) < 0.1
    with pytest.raises(ValueError, match="no window"):
        trainer.fit("the cat", steps=1)


def test_callbacks_are_called_by_name():
    calls = []

    class Spy:
        def on_start(self, trainer):
            calls.append("start")

        def on_log(self, trainer):
            calls.append(len(trainer.history))

        def on_evaluate(self, trainer, step, loss):
            calls.append(("evaluate", step))

        def on_end(self, trainer):
            calls.append("end")

    make().fit(DOCS, steps=25, log_every=10, validation=DOCS[:10], eval_every=20, callbacks=[Spy()])
    assert calls == ["start", 1, 10, ("evaluate", 20), 20, ("evaluate", 25), 25, "end"]


def test_a_callback_sets_how_often_it_is_called():
    class Spy:
        def __init__(self, every=None):
            self.calls = []
            if every is not None:
                self.every = every

        def on_log(self, trainer):
            self.calls.append(len(trainer.history))

    often, seldom, plain, never = Spy(3), Spy(7), Spy(), Spy(0)
    make().fit(DOCS, steps=15, log_every=10, callbacks=[often, seldom, plain, never])
    assert often.calls == [1, 3, 6, 9, 12, 15]
    assert seldom.calls == [1, 7, 14, 15]
    assert plain.calls == [1, 10, 15]
    assert never.calls == []


def test_the_last_step_is_logged_wherever_a_run_stops():
    class Stops:
        def on_step(self, trainer):
            if trainer.steps == 7:
                trainer.stop("enough")

    class Spy:
        calls = ()

        def on_log(self, trainer):
            self.calls += (trainer.steps,)

    spy = Spy()
    make().fit(DOCS, steps=25, log_every=5, callbacks=[spy, Stops()])
    assert spy.calls == (1, 5, 7)


class Misnamed:
    def on_evalute(self, trainer, step, loss):
        pass


@pytest.mark.parametrize("callbacks, message", [
    ([fl.callbacks.Progress], r"callbacks\[0\] is the class Progress; give an object: Progress\(\)"),
    (fl.callbacks.Progress(), "must be a list"),
    ([fl.callbacks.Progress(), Misnamed()], r"callbacks\[1\] has on_evalute, which fit does not call"),
    ([3], r"callbacks\[0\] = 3 has none of what fit calls: on_start, on_step, "),
    ([fl.callbacks.Progress(), print], r"callbacks\[1\] = <built-in function print> has none of what fit calls"),
])
def test_callbacks_that_would_never_be_called_are_refused(callbacks, message):
    trainer = make()
    with pytest.raises(TypeError, match=message):
        trainer.fit(DOCS, steps=5, callbacks=callbacks)
    assert trainer.steps == 0


class Ends:
    ended = None

    def on_end(self, trainer):
        self.ended = trainer.history.stop_reason
        raise ValueError("this must not hide the first error")


def test_on_end_is_called_whichever_way_a_run_ends():
    class Fails:
        def on_step(self, trainer):
            raise RuntimeError("enough")

    for callbacks, lr, error in (([Fails()], 0.01, RuntimeError), ([], 1e200, fl.DivergenceError)):
        trainer, ends = make(), Ends()
        trainer.optimizer.lr = lr
        with pytest.raises(error):
            trainer.fit(DOCS, steps=50, callbacks=[*callbacks, ends])
        assert ends.ended == trainer.history.stop_reason == ("RuntimeError" if lr < 1 else "diverged")
    with pytest.raises(ValueError, match="hide"):
        make().fit(DOCS, steps=5, callbacks=[Ends()])


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_a_callback_that_raises_ends_the_run_at_a_whole_step():
    class Fails:
        def on_step(self, trainer):
            if trainer.steps == 7:
                raise RuntimeError("enough")

    trainer, other = make(), make()
    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(DOCS, steps=25, callbacks=[Fails()])
    assert len(trainer.history) == trainer.steps == 7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    trainer.resume(DOCS)
    other.fit(DOCS, steps=25)
    assert np.array_equal(trainer.model.params.flat, other.model.params.flat)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps = 0"),
        ({"steps": 1.5}, "steps = 1.5"),
        ({"steps": 1, "batch_size": 0}, "batch_size = 0"),
        ({"steps": 1, "epochs": 1}, "give only one"),
        ({"steps": 1, "patience": 1}, "need validation"),
    ],
)
def test_bad_arguments_of_fit(options, message):
    trainer = make()
    before = digest(trainer)
    with pytest.raises((TypeError, ValueError), match=message):
        trainer.fit(DOCS, **options)
    assert digest(trainer) == before


@pytest.mark.parametrize("schedule, message", [
    (0.5, "schedule must be a function"), (fl.schedules.linear, r"linear makes a schedule: call it, linear\(...\)"),
])
def test_what_is_no_schedule_is_refused(schedule, message):
    with pytest.raises(TypeError, match=message):
        fl.Trainer(fl.BigramLM(TOK.vocab_size), tokenizer=TOK, schedule=schedule)


def test_repr_of_a_trainer():
    trainer = make()
    trainer.fit(DOCS, steps=3)
    assert re.fullmatch(r"Trainer\(BigramLM\(.*\), Adam\(.*\), after 3 steps\)", repr(trainer))


def test_numpys_integers_are_integers():
    trainer, other = make(), make()
    trainer.fit(DOCS, steps=np.int64(5), batch_size=np.int32(2), seed=np.uint8(3))
    other.fit(DOCS, steps=5, batch_size=2, seed=3)
    assert digest(trainer) == digest(other)
    assert json.dumps(codec.pack_fit(trainer.last_fit)[1]) == json.dumps(codec.pack_fit(other.last_fit)[1])


def test_a_batch_of_another_model_is_refused():
    trainer = make()
    other_tok = fl.CharTokenizer(["".join(map(chr, range(97, 160)))])
    other = fl.Trainer(fl.BigramLM(other_tok.vocab_size), tokenizer=other_tok)
    with pytest.raises(ValueError, match="do not fit"):
        trainer.forward(other.batch([other_tok.chars]))
    for wrong in (np.zeros(3), DOCS[:3], None):
        with pytest.raises(TypeError, match=r"forward takes a batch, as this trainer's batch\(...\) makes it, got"):
            trainer.forward(wrong)
    X = np.ones((2, 3))
    rows = fl.Trainer(fl.LinearRegression(3)).batch(X, X[:, 0])
    with pytest.raises(TypeError, match="got ArrayBatch"):
        trainer.forward(rows)
    with pytest.raises(fl.DataError, match="only 27"):
        fl.Trainer(trainer.model, fl.Adam(), tokenizer=other_tok).batch(["a"])


def test_the_variant_in_use_is_the_one_asked_for():
    assert _core.isa == (os.environ.get("FASTLOOP_ISA") or _core.supported[0])


def test_top_k_and_top_p_keep_the_most_probable():
    from fastloop.models import sample

    logits = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15]))
    us = (np.arange(10000) + 0.5) / 10000

    def shares(**options):
        return np.bincount(sample(np.tile(logits, (len(us), 1)), us, **options), minlength=5) / len(us)

    np.testing.assert_allclose(shares(), [0.1, 0.4, 0.05, 0.3, 0.15], atol=1e-3)
    np.testing.assert_allclose(shares(top_k=2), [0, 4 / 7, 0, 3 / 7, 0], atol=1e-3)
    np.testing.assert_allclose(shares(top_p=0.8), [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85], atol=1e-3)
    np.testing.assert_allclose(shares(top_p=0.65, top_k=4), [0, 4 / 7, 0, 3 / 7, 0], atol=1e-3)
    squares = np.array([0.1, 0.4, 0.05, 0.3, 0.15]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), squares / squares.sum(), atol=1e-3)
    rows = np.array([logits, logits[::-1]])
    assert sample(rows, np.array([0.999, 0.0]), temperature=0.0).tolist() == [1, 3]
    # Each row has its own order and its own number.
    assert sample(rows, np.array([0.999, 0.999]), top_k=2).tolist() == [3, 1]
    assert sample(rows, np.array([0.0, 0.0]), top_p=0.3).tolist() == [1, 3]
    assert sample(rows, np.array([0.0, 0.999])).tolist() == [0, 4]


def test_what_has_no_probability_is_never_sampled():
    from fastloop.models import sample

    logits = np.array([[-np.inf, 0.0, -np.inf], [-np.inf, 0.0, -np.inf], [-2000.0, 1e6 - 2000.0, 1e6]])
    assert sample(logits, np.array([0.0, np.nextafter(1.0, 0.0), 0.0]), temperature=0.8).tolist() == [1, 1, 2]


@pytest.mark.parametrize("model, value", [
    (fl.BigramLM, np.nan), (fl.BigramLM, np.inf), (fl.BigramLM, 1e300), (fl.GPT, np.nan), (fl.GPT, np.inf),
])
def test_nothing_is_sampled_from_logits_that_are_not_finite(model, value):
    model = model(TOK.vocab_size)
    model.params.flat[:] = value
    for temperature in (0.0, 0.8):
        with pytest.raises(FloatingPointError, match="logits are not finite"):
            model.generate(TOK, 3, temperature=temperature)


def test_an_evaluation_that_is_not_finite_is_never_the_best():
    class Spoil:
        def on_evaluate(self, trainer, step, loss):
            if step == 1:
                trainer.model.params.flat[:] = self.kept

    spoil, trainer = Spoil(), make()
    spoil.kept = trainer.model.params.flat.copy()
    validation = [doc for doc in DOCS if "z" in doc][:5]
    trainer.model.params["wte"][TOK.encode("z")] = np.nan
    history = trainer.fit(
        [doc for doc in DOCS if "z" not in doc][:20], steps=3, validation=validation, eval_every=1, callbacks=[spoil]
    )
    assert np.isnan(history.evaluations[0][1])
    assert trainer.best_step in (2, 3)
    assert np.isfinite(trainer.best_loss)


def test_a_prompt_begins_every_document():
    model = make().model
    names = model.generate(TOK, 20, seed=1, prompt="an")
    assert all(name.startswith("an") for name in names)
    assert all(len(name) <= 8 for name in names)
    with pytest.raises(ValueError, match="leaves no room in block_size = "):
        model.generate(TOK, prompt="annaanna")
    with pytest.raises(fl.DataError, match="'!'"):
        model.generate(TOK, prompt="an!")
    for top_p in (0.0, 1.1):
        with pytest.raises(ValueError, match=rf"top_p = {top_p} is outside \(0, 1\]"):
            model.generate(TOK, top_p=top_p)
    with pytest.raises(ValueError, match="top_k"):
        model.generate(TOK, top_k=0)


@pytest.mark.parametrize("kind", [fl.BigramLM, fl.GPT])
@pytest.mark.parametrize("n", [9, 15, 16, 17, 24])
def test_evaluate_counts_every_prediction_of_a_text_once(kind, n):
    """In consecutive windows, the last of them shorter."""
    text = "the cat sat on the mat. ate"[: n + 1]
    tok = fl.CharTokenizer([text + "z"])
    trainer = fl.Trainer(kind(tok.vocab_size, block_size=8, init_std=0.5), tokenizer=tok)
    ids = np.array(tok.encode(text))
    losses = []
    for first in range(0, n, 8):
        for i in range(first, min(first + 8, n)):
            logits = trainer.model.logits(ids[first : i + 1])[-1]
            losses.append(np.log(np.exp(logits).sum()) - logits[ids[i + 1]])
    assert len(losses) == n
    assert trainer.evaluate(text) == pytest.approx(np.mean(losses), rel=1e-13)
    assert trainer.evaluate(text[:-1] + "z") != trainer.evaluate(text)


def test_a_fit_at_learning_rate_0_says_so(recwarn):
    trainer = make(steps=20)
    trainer.fit(DOCS, steps=20)
    assert not recwarn
    before = trainer.model.params.flat.copy()
    with pytest.warns(fl.FastloopWarning, match=r"0 at all 20 steps .* 20 were .*schedules\.linear\(\)") as caught:
        trainer.fit(DOCS, steps=20)
    assert caught[0].filename == __file__
    assert np.array_equal(trainer.model.params.flat, before)
    assert [finding.name for finding in fl.diagnose(trainer)] == ["lr_zero"]
    trainer.schedule = fl.schedules.linear()
    trainer.fit(DOCS, steps=20)
    assert not np.array_equal(trainer.model.params.flat, before)


class Alarm(Exception):
    pass


def alarm(number, frame):
    raise Alarm


class AlarmAfter:
    """The compiled loop, with an alarm just as its nth call comes back."""

    def __init__(self, loop, n):
        self.loop, self.left = loop, n

    def __getattr__(self, name):
        return getattr(self.loop, name)

    def run(self, *arguments):
        taken = self.loop.run(*arguments)
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGALRM)
        return taken


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the platform has no alarm")
def test_an_alarm_that_raises_in_fit_loses_no_row_of_the_history():
    previous = signal.signal(signal.SIGALRM, alarm)
    try:
        trainer = make()
        trainer.loop = AlarmAfter(trainer.loop, 3)
        with pytest.raises(Alarm):
            trainer.fit(DOCS, steps=100, callbacks=[EachStep()])
        assert trainer.steps == len(trainer.history) == trainer.optimizer.t == 3
        predictions = make().fit(DOCS, steps=3).predictions
        assert trainer.history.predictions == predictions
        for k in range(40):         # wherever it strikes
            trainer = make(schedule=fl.schedules.constant())
            data, _ = trainer.prepare(DOCS)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.0005 * k)
                trainer.fit(data, steps=10**7, callbacks=[EachStep()] if k % 2 else ())
            except Alarm:
                pass
            steps = trainer.steps
            assert steps == len(trainer.history or ()) == trainer.optimizer.t
            if steps and k % 8 == 0:
                other = make(schedule=fl.schedules.constant())
                history = other.fit(DOCS, steps=steps)
                assert np.array_equal(history.loss, trainer.history.loss)
                assert np.array_equal(other.model.params.flat, trainer.model.params.flat)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
