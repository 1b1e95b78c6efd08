"""Settings of models, optimisers, Trainer and fit: refused before the first step, or trained with, saved and loaded."""

import json
import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fastloop as fl
from fastloop import checkpoint, codec

DOCS = ["anna", "otto", "hannah", "bob"]
TOK = fl.CharTokenizer(DOCS)


class Everything:
    """Names of arguments, by what takes them."""

    model = ("n_embd", "block_size", "seed", "init_std", "dtype")
    adam = ("lr", "betas", "eps", "weight_decay", "no_decay")
    sgd = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "no_decay")
    trainer = ("tokenizer", "schedule", "clip_norm", "clip_value", "grad_accum")
    fit = (
        "steps", "epochs", "batch_size", "shuffle", "seed", "validation", "eval_every", "patience", "min_delta",
        "restore_best", "tol", "log_every", "callbacks", "save_every",
    )


VALUES = [
    None, True, False, np.True_, np.False_, 0, 1, 2, -1, 0.0, -0.0, 0.5, 1.0, 2.5, math.nan, math.inf,
    -math.inf, 1e-320, 1e308, np.int8(1), np.int64(2), np.uint64(2), np.float16(0.5), np.float32(0.1), np.float64(0.5),
    np.longdouble(0.5), np.float32("nan"), np.array(2), np.array(0.5), np.array([1.0]), np.datetime64("2026-11-24"),
    Decimal("0.5"), Fraction(1, 2), 1j, "1", "", b"x", np.str_("wpe"), [], [0.5, 0.5], (np.float32(0.5), 0.9), ["wpe"],
    ("lm_head", "wpe"), {"a": 1}, 2**63, 10**400, -(10**400), object(), print, np.float32, "float32", DOCS, DOCS[:2],
    fl.schedules.linear(),
    fl.schedules.warmup(np.int64(1), fl.schedules.cosine(np.int32(4), np.float32(0.5))), fl.callbacks.Progress(),
]
PLACES = [(place, name) for place in ("model", "adam", "sgd", "trainer", "fit") for name in getattr(Everything, place)]
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(VALUES)), min_size=1, max_size=2)


@pytest.mark.filterwarnings("ignore")       # those of learning rates that are all 0, of NumPy's casts
@example(changes=[(("fit", "restore_best"), 1)], dtype="float32")
@example(changes=[(("fit", "tol"), True)], dtype="float32")
@example(changes=[(("trainer", "clip_norm"), np.float32(1.0))], dtype="float32")
@example(changes=[(("fit", "min_delta"), math.nan)], dtype="float32")
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(changes=CHANGES, dtype=st.sampled_from(["float64", "float32"]))
def test_settings_are_refused_before_the_first_step_or_trained_saved_and_loaded(tmp_path_factory, changes, dtype):
    folder = tmp_path_factory.mktemp("settings")
    given = {place: {name: value for (at, name), value in changes if at == place} for place, _ in PLACES}
    trainer = None
    try:
        model = fl.BigramLM(TOK.vocab_size, **{"n_embd": 4, "block_size": 4, "dtype": dtype, **given["model"]})
        optimizer = fl.SGD(**{"momentum": 0.5, **given["sgd"]}) if given["sgd"] else fl.Adam(**given["adam"])
        trainer = fl.Trainer(model, optimizer, **{"tokenizer": TOK, **given["trainer"]})
        options = {"validation": DOCS[:2], **given["fit"]}
        if "epochs" not in options:
            options = {"steps": 3, **options}
        trainer.fit(DOCS, save=folder / "run.npz", **options)
    except fl.DivergenceError:
        trainer.save(folder / "run.npz")
    except (TypeError, ValueError):
        assert trainer is None or trainer.steps == 0
        return
    assert trainer.steps > 0 or trainer.history.stop_reason == "diverged"
    schedule = None if hasattr(trainer.schedule, "spec") else trainer.schedule
    loaded = fl.Trainer.load(folder / "run.npz", schedule)
    loaded.save(folder / "again.npz")
    assert (folder / "run.npz").read_bytes() == (folder / "again.npz").read_bytes()
    for thing in ("model", "optimizer"):
        one, other = getattr(trainer, thing).config, getattr(loaded, thing).config
        assert json.dumps(one) == json.dumps(other)
    _, run = codec.pack_fit(trainer.last_fit)
    assert json.dumps(run) == json.dumps(codec.pack_fit(loaded.last_fit)[1])


@pytest.mark.parametrize("call, words", [
    (lambda t: t.fit(DOCS, steps=1, restore_best=1), "restore_best = 1 must be True or False"),
    (lambda t: t.fit(DOCS, steps=1, shuffle="no"), "shuffle = 'no' must be True or False"),
    (lambda t: t.fit(DOCS, steps=1, tol=True), "tol = True is a bool; expected a number"),
    (lambda t: t.fit(DOCS, steps=1, save=b"run"), "save = b'run' must be a path"),
    (lambda t: t.fit(DOCS, steps=1, save=""), "save = '' is not the name of a file"),
    (lambda t: t.fit(DOCS, steps=1, save="a\0"), r"save = 'a\x00' is not the name of a file"),
    (lambda t: t.save(""), "path = '' is not the name of a file"),
    (lambda t: t.stop(b"x"), "reason = b'x' must be a str"),
    (lambda t: t.stop(""), "reason = '' must be a str"),
    (lambda t: setattr(t, "clip_norm", Decimal(1)) or t.fit(DOCS, steps=1), "clip_norm = Decimal('1') is a Decimal"),
    (lambda t: setattr(t, "grad_accum", 1.5) or t.save("x"), "grad_accum = 1.5 must be an int"),
    (lambda t: t.fit(DOCS, steps=2**62, batch_size=2), "4611686018427387904 steps of 2 examples are more than"),
    (lambda t: fl.Adam(lr=True), "lr = True is a bool; expected a number"),
    (lambda t: fl.Adam(lr=10**400), "is outside [0.0, inf)"),
    (lambda t: fl.SGD(momentum=0.9, nesterov=1), "nesterov = 1 must be True or False"),
    (lambda t: fl.MLP([1, 1], activation=np.array(["relu"])), "activation = array(['relu'], dtype='<U4') is not"),
])
def test_a_setting_of_a_wrong_kind_is_refused_in_a_sentence(call, words):
    trainer = fl.Trainer(fl.BigramLM(TOK.vocab_size), tokenizer=TOK)
    with pytest.raises((TypeError, ValueError)) as caught:
        call(trainer)
    assert words in str(caught.value)
    assert trainer.steps == 0


def test_numbers_of_numpy_become_plain_ones():
    model = fl.LinearRegression(np.int16(1), init_std=np.float32(0.5))
    optimizer = fl.SGD(lr=np.float32(0.5), momentum=np.float16(0.5), nesterov=np.True_)
    trainer = fl.Trainer(model, optimizer, clip_norm=np.float32(0.5), grad_accum=np.int64(2))
    assert type(trainer.clip_norm) is type(optimizer.lr) is type(optimizer.momentum) is float
    assert optimizer.nesterov is True
    assert type(trainer.grad_accum) is type(model.n_in) is int
    del optimizer


@pytest.mark.parametrize("folder, error", [(".", IsADirectoryError), ("no/run.npz", FileNotFoundError)])
def test_a_file_that_could_not_be_written_at_the_end_is_refused_at_the_start(folder, error, tmp_path):
    trainer = fl.Trainer(fl.BigramLM(TOK.vocab_size), tokenizer=TOK)
    with pytest.raises(error):
        trainer.fit(DOCS, steps=3, save=tmp_path / folder)
    assert trainer.steps == 0


class MyAdam(fl.Adam):
    pass


class MyTokenizer(fl.CharTokenizer):
    pass


@pytest.mark.parametrize("make, words", [
    (lambda: fl.Trainer(fl.BigramLM(TOK.vocab_size), MyAdam(), tokenizer=TOK), "the optimizer is a MyAdam"),
    (lambda: fl.Trainer(fl.BigramLM(TOK.vocab_size), tokenizer=MyTokenizer(DOCS)), "the tokenizer is a MyTokenizer"),
])
def test_what_no_checkpoint_can_restore_trains_but_is_not_saved(make, words, tmp_path):
    trainer = make()
    for call in (lambda: trainer.fit(DOCS, steps=2, save=tmp_path / "run.npz"), lambda: trainer.save(tmp_path / "x")):
        with pytest.raises(TypeError, match=words):
            call()
        assert trainer.steps == 0
    assert len(trainer.fit(DOCS, steps=2)) == 2


@pytest.mark.parametrize("notes", [{"a": {1, 2}}, {"a": b"x"}, {(1, 2): 3}, object()])
def test_notes_that_no_file_can_hold_are_refused_before_the_work(notes, tmp_path):
    trainer = fl.Trainer(fl.BigramLM(TOK.vocab_size), tokenizer=TOK)
    trainer.notes = notes
    with pytest.raises(TypeError, match=r"notes = .* cannot be saved as JSON"):
        trainer.fit(DOCS, steps=2, save=tmp_path / "run.npz")
    assert trainer.steps == 0
    trainer.notes = {"a": [1, None, "x"]}
    trainer.fit(DOCS, steps=2, save=tmp_path / "run.npz")
    assert fl.Trainer.load(tmp_path / "run.npz").notes == trainer.notes


def test_the_model_and_the_optimizer_the_wrong_way_round():
    with pytest.raises(TypeError, match=r"the optimizer stands where the model should: Trainer\(model, optimizer\)"):
        fl.Trainer(fl.Adam(), fl.BigramLM(3))
    with pytest.raises(TypeError, match="model = 3 must be a model"):
        fl.Trainer(3)
    with pytest.raises(TypeError, match="optimizer = 'adam' must be an optimizer"):
        fl.Trainer(fl.BigramLM(3), "adam")


def trainer():
    return fl.Trainer(fl.BigramLM(TOK.vocab_size), fl.Adam(lr=0.5), tokenizer=TOK, schedule=fl.schedules.linear(4))


@pytest.mark.parametrize("call, message", [
    (lambda: fl.Adam(learning_rate=0.1), "Adam takes no argument learning_rate; did you mean lr?"),
    (lambda: fl.SGD(momentun=0.1), "SGD takes no argument momentun; did you mean momentum?"),
    (lambda: fl.GPT(9, n_heads=2), "GPT takes no argument n_heads; did you mean n_head?"),
    (lambda: fl.GPT(9, d_model=32), "GPT takes no argument d_model; did you mean n_embd?"),
    (lambda: fl.MLP([1, 1], activaton="relu"), "MLP takes no argument activaton; did you mean activation?"),
    (lambda: fl.LinearRegression(1, std=1.0), "LinearRegression takes no argument std; did you mean init_std?"),
    (lambda: fl.Trainer(fl.BigramLM(3), clip=1.0), "Trainer takes no argument clip; did you mean clip_norm?"),
    (lambda: fl.Trainer(fl.BigramLM(3), learning_rate=1.0),
     "Trainer takes no argument learning_rate; the optimizer has the learning rate: Adam(lr=0.01)"),
    (lambda: trainer().fit(DOCS, num_steps=3), "Trainer.fit takes no argument num_steps; did you mean steps?"),
    (lambda: trainer().fit(DOCS, zzz=3), "Trainer.fit takes no argument zzz; it takes data, y, steps, epochs,"),
    (lambda: trainer().resume(DOCS, val_data=3), "Trainer.resume takes no argument val_data; did you mean validation?"),
    (lambda: fl.lr_find(trainer(), DOCS, max_steps=3), "lr_find takes no argument max_steps; did you mean steps?"),
])
def test_a_keyword_of_another_name_is_told_the_nearest(call, message):
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_the_learning_rate_of_the_next_step_can_be_read():
    one = trainer()
    assert one.lr == 0.5
    one.fit(DOCS, steps=1)
    assert one.lr == 0.375
    one.optimizer.lr = 1.0
    assert one.lr == 0.75
    one.schedule = fl.schedules.linear()
    seen = []

    class Look:
        def on_step(self, trainer):
            seen.append(trainer.lr)

    history = one.fit(DOCS, steps=4, callbacks=[Look()])
    assert seen == [0.75, 0.5, 0.25, 0.0] == [*history.lr[1:], 0.0]
    with pytest.raises(ValueError, match="takes its length from fit"):
        fl.Trainer(fl.BigramLM(3), schedule=fl.schedules.linear()).lr      # noqa: B018


def test_repr_of_data_and_batches():
    data, _ = trainer().prepare(DOCS)
    assert repr(data) == "<TokenData of 4 examples>"
    assert repr(trainer().batch(DOCS[:2])) == "<TokenBatch of 2 examples, 10 predictions>"
    rows = fl.Trainer(fl.LinearRegression(1)).batch([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert repr(rows) == "<ArrayBatch of 3 examples, 3 predictions>"


def test_a_trainers_model_and_optimizer_cannot_be_replaced():
    trainer = fl.Trainer(fl.BigramLM(TOK.vocab_size), tokenizer=TOK)
    for name, value in (("model", fl.BigramLM(TOK.vocab_size)), ("optimizer", fl.SGD())):
        with pytest.raises(AttributeError, match=f"{name} is fixed when a Trainer is made; make a new one"):
            setattr(trainer, name, value)
    model = trainer.model
    with pytest.raises(AttributeError, match=r"grads stays the model's own: write into it, model.grads.flat"):
        model.grads = model.params
    for own in (model, fl.GPT(3), fl.MLP([1, 1]), fl.LinearRegression(1), fl.SoftmaxRegression(1, 2)):
        for name in own.config:
            with pytest.raises(AttributeError, match=f"{name} is fixed when a model is made; make a new one"):
                setattr(own, name, 50)
    trainer.fit(DOCS, steps=2)
    assert trainer.steps == trainer.optimizer.t == 2


def test_steps_that_no_file_can_hold_are_refused_before_the_work():
    trainer = fl.Trainer(fl.BigramLM(TOK.vocab_size), tokenizer=TOK)
    with pytest.raises(ValueError, match="steps = -5 must be an int of at least 0"):
        trainer.steps = -5
    assert trainer.steps == trainer.optimizer.t == 0


def test_notes_that_could_not_be_read_again_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "META_LIMIT", 5000)
    trainer = fl.Trainer(fl.BigramLM(TOK.vocab_size), tokenizer=TOK)
    trainer.save(tmp_path / "run.npz")
    trainer.notes = "x" * 5000
    with pytest.raises(ValueError, match=r"its description, including notes, has .* bytes, at most 5,000 are read"):
        trainer.save(tmp_path / "run.npz")
    assert fl.Trainer.load(tmp_path / "run.npz").notes == {}
    nested = []
    for _ in range(100_000):
        nested = [nested]
    trainer.notes = nested
    with pytest.raises(TypeError, match=r"notes = .* cannot be saved as JSON"):
        trainer.save(tmp_path / "run.npz")


def test_initial_weights_are_finite():
    assert np.isfinite(fl.BigramLM(50, init_std=9e299).params.flat).all()
    with pytest.raises(ValueError, match=r"init_std = 1e\+308 is outside"):
        fl.MLP([1, 1], init_std=1e308)


@pytest.mark.parametrize("options, error", [
    ({"callbacks": 3}, TypeError), ({"save": ""}, ValueError), ({"steps": 2**62}, ValueError),
    ({"validation": ([[1.0, 2.0]], ["c"])}, fl.DataError), ({"log_every": -1}, ValueError),
])
def test_the_labels_of_a_refused_fit_are_forgotten(options, error):
    model = fl.SoftmaxRegression(2, 2)
    trainer = fl.Trainer(model, fl.SGD())
    X = [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(error):
        trainer.fit(X, ["a", "b"], **{"steps": 1, "batch_size": 2, **options})
    assert model.classes is None
    assert trainer.history is None
    trainer.fit(X, ["no", "yes"], steps=1)
    assert model.classes.tolist() == ["no", "yes"]


@pytest.mark.parametrize("gave", [None, "0.1", 1j])
def test_a_schedules_value_that_is_not_a_number_is_named(gave):
    trainer = fl.Trainer(fl.LinearRegression(1), fl.SGD(), schedule=lambda step: gave)
    message = re.escape(f"the schedule gave {gave!r}, expected a finite number of at least 0 (lr nan,")
    with pytest.raises(fl.DivergenceError, match=message):
        trainer.fit([1.0, 2.0], [1.0, 2.0], steps=3)
    trainer.forward(trainer.batch([1.0, 2.0], [1.0, 2.0]))
    trainer.backward()
    with pytest.raises(fl.DivergenceError, match=message):
        trainer.step()
    assert trainer.steps == 0
