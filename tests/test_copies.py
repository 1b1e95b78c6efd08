"""Copies: what is copied or pickled trains, saves and generates like the original, and independently of it."""

import copy
import json
import multiprocessing
import pickle

import numpy as np
import pytest

import fastloop as fl
from fastloop import _core
from fastloop import schedules as s

DOCS = ["anna", "otto", "hannah", "bob", "elle", "nana", "toto"]
TOK = fl.CharTokenizer(DOCS)
RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(20, 2)), RNG.normal(size=(20, 1))
LABELS = np.arange(20) % 3

MODELS = {
    "bigram": lambda **kw: fl.BigramLM(TOK.vocab_size, n_embd=4, **kw),
    "gpt": lambda **kw: fl.GPT(TOK.vocab_size, n_embd=8, n_head=2, block_size=6, **kw),
    "mlp": lambda **kw: fl.MLP([2, 5, 1], activation="tanh", **kw),
    "linear": lambda **kw: fl.LinearRegression(2, **kw),
    "softmax": lambda **kw: fl.SoftmaxRegression(2, 3, **kw),
}
DATA = {"bigram": (DOCS,), "gpt": (DOCS,), "mlp": (X, Y), "linear": (X, Y), "softmax": (X, LABELS)}
OPTIMIZERS = {
    "adam": lambda: fl.Adam(lr=0.05),
    "adamw": lambda: fl.AdamW(lr=0.05, weight_decay=0.1),
    "sgd": lambda: fl.SGD(lr=0.05),
    "momentum": lambda: fl.SGD(lr=0.05, momentum=0.9, dampening=0.5),
}
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda x, n=n: pickle.loads(pickle.dumps(x, n)) for n in (0, 2, pickle.HIGHEST_PROTOCOL)},
}


def trainer(kind, optimizer="adam", dtype="float64", **options):
    tok = TOK if kind in ("bigram", "gpt") else None
    return fl.Trainer(MODELS[kind](dtype=dtype), OPTIMIZERS[optimizer](), tokenizer=tok, **options)


def bits(trainer):
    optimizer = trainer.optimizer
    return [trainer.model.params.flat.tobytes(), *(p.flat.tobytes() for p in optimizer.flats.values()), optimizer.t]


@pytest.fixture(params=COPIES)
def again(request):
    return COPIES[request.param]


# --- buffers and models

def test_params_keep_one_buffer(again):
    params = fl.Params({"w": (3, 5), "b": (), "c": (2,)})
    params.flat[:] = np.arange(18.0)
    twin = again(params)
    twin.flat[:] += 100.0
    assert twin["w"][0].tolist() == [100.0, 101.0, 102.0, 103.0, 104.0]
    assert all(np.shares_memory(view, twin.flat) for view in twin.values())
    assert not np.shares_memory(twin.flat, params.flat)
    assert twin.flat.ctypes.data % 64 == 0
    assert (list(twin), twin.shapes) == (list(params), params.shapes)
    assert params.flat.tolist() == list(range(18))


def test_assigning_to_flat_writes_into_the_buffer():
    params = fl.Params({"w": (2,), "b": (1,)})
    flat = params.flat
    params.flat = [1.0, 2.0, 3.0]
    params.flat += 1.0
    assert params.flat is flat
    assert (params["w"].tolist(), params["b"].tolist()) == ([2.0, 3.0], [4.0])
    with pytest.raises(ValueError, match=r"flat has shape \(3,\), got \(2,\)"):
        params.flat = [1.0, 2.0]


def test_a_models_buffer_cannot_be_replaced():
    model = MODELS["bigram"]()
    with pytest.raises(AttributeError, match="params stays the model's own: write into it"):
        model.params = fl.Params(model.params.shapes)


@pytest.mark.parametrize("kind", MODELS)
def test_a_copied_model_saves_what_it_has_learnt(kind, dtype, again, tmp_path):
    model = again(MODELS[kind](dtype=dtype))
    own = fl.Trainer(model, fl.Adam(lr=0.05), tokenizer=TOK if kind in ("bigram", "gpt") else None)
    own.fit(*DATA[kind], steps=30)
    own.save(tmp_path / "run.npz")
    loaded = fl.Trainer.load(tmp_path / "run.npz")
    assert loaded.evaluate(*DATA[kind]) == own.evaluate(*DATA[kind]) < 1.5
    assert loaded.model.params.flat.tobytes() == model.params.flat.tobytes()
    if own.tokenizer:
        assert loaded.model.generate(TOK, 5, seed=1) == model.generate(TOK, 5, seed=1)
    else:
        assert loaded.model.outputs(X).tolist() == model.outputs(X).tolist()


@pytest.mark.parametrize("kind", MODELS)
def test_a_copied_model_trains_independently(kind, dtype, again):
    own = trainer(kind, dtype=dtype)
    own.fit(*DATA[kind], steps=5)
    before = own.model.params.flat.copy()
    twin = again(own.model)
    assert twin.config == own.model.config
    assert twin.params.flat.tolist() == before.tolist()
    fl.Trainer(twin, fl.SGD(lr=0.1), tokenizer=TOK if own.tokenizer else None).fit(*DATA[kind], steps=3)
    assert own.model.params.flat.tolist() == before.tolist()
    assert twin.params.flat.tolist() != before.tolist()


def test_the_best_model_kept_by_a_callback_is_that_of_its_step():
    class Keep:
        def on_evaluate(self, trainer, step, loss):
            self.kept = [*getattr(self, "kept", []), (copy.deepcopy(trainer.model), loss)]

    own, keep = trainer("gpt"), Keep()
    own.fit(DOCS, steps=40, validation=DOCS, eval_every=10, callbacks=[keep])
    assert len(keep.kept) == 4
    for model, loss in keep.kept:
        assert fl.Trainer(model, tokenizer=TOK).evaluate(DOCS) == loss


def test_attributes_that_a_user_gave_a_model_are_copied(again):
    model = MODELS["bigram"]()
    model.note = ["of the user's"]
    assert again(model).note == ["of the user's"]


# --- trainers and optimisers

@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_copied_trainer_goes_on_to_the_same_bits(kind, optimizer, dtype, again):
    own = trainer(kind, optimizer, dtype, clip_norm=1.0, schedule=s.cosine(40), grad_accum=2)
    own.fit(*DATA[kind], steps=7, batch_size=3, shuffle=True)
    twin = again(own)
    assert bits(twin) == bits(own)
    assert twin.optimizer.model is twin.model
    assert (twin.steps, twin.history.loss.tolist()) == (7, own.history.loss.tolist())
    at_seven, losses = bits(own), twin.fit(*DATA[kind], steps=9, batch_size=3, seed=5, shuffle=True).loss
    assert bits(own) == at_seven
    assert own.fit(*DATA[kind], steps=9, batch_size=3, seed=5, shuffle=True).loss.tolist() == losses.tolist()
    assert bits(twin) == bits(own)


def test_a_copied_run_is_resumed_to_the_same_bits(again):
    class Stop:
        def on_step(self, trainer):
            if trainer.steps == 11:
                trainer.stop("enough")

    own = trainer("gpt", schedule=s.linear())
    own.fit(DOCS, steps=25, batch_size=2, shuffle=True, callbacks=[Stop()])
    twin = again(own)
    assert twin.last_fit.history is twin.history
    twin.resume(DOCS)
    own.resume(DOCS)
    assert bits(twin) == bits(own)
    assert twin.history.loss.tolist() == own.history.loss.tolist()


def test_the_moves_go_on_in_a_copy(again):
    own = trainer("mlp", "momentum")

    def move(trainer):
        trainer.zero_grad()
        trainer.forward(trainer.batch(X, Y))
        trainer.backward()
        trainer.step()

    move(own)
    twin = again(own)
    with pytest.raises(fl.OrderError, match=r"forward\(\) was called after step"):
        twin.forward(twin.batch(X, Y))
    move(own)
    move(twin)
    assert bits(twin) == bits(own)


def test_a_trainer_in_the_middle_of_a_step_is_not_copied(again):
    own = trainer("mlp")
    batch = own.batch(X, Y)
    for move, arguments in (("forward", (batch,)), ("backward", ())):
        getattr(own, move)(*arguments)
        with pytest.raises(fl.OrderError, match=rf"copying or pickling a Trainer was called after {move}\(\)"):
            again(own)


def test_a_trainer_in_a_fit_is_not_copied(again):
    class Copy:
        def on_step(self, trainer):
            again(trainer)

    own = trainer("mlp")
    with pytest.raises(fl.OrderError, match=r"copying or pickling a Trainer was called while fit\(\) is running"):
        own.fit(X, Y, steps=3, callbacks=[Copy()])
    assert again(own).steps == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_trainers_optimiser_copied_alone_goes_on_with_the_next_model(name, again):
    own = trainer("mlp", name)
    own.fit(X, Y, steps=5)
    model, optimizer = copy.deepcopy(own.model), again(own.optimizer)
    assert optimizer.model is None
    assert json.dumps(optimizer.state_dict(), default=np.ndarray.tolist) == json.dumps(
        own.optimizer.state_dict(), default=np.ndarray.tolist)
    twin = fl.Trainer(model, optimizer)
    twin.steps = own.steps
    own.fit(X, Y, steps=5)
    twin.fit(X, Y, steps=5)
    assert bits(twin) == bits(own)


def test_a_copied_optimiser_refuses_a_model_of_other_shapes():
    own = trainer("mlp")
    with pytest.raises(ValueError, match=r"holds exp_avg of Params\(layer0.weight \(5, 2\).* the model is Params\("):
        fl.Trainer(fl.LinearRegression(2), copy.deepcopy(own.optimizer))


def test_an_unbound_optimiser_is_copied(again):
    optimizer = again(fl.AdamW(lr=0.3, no_decay=["bias"]))
    assert optimizer.config == fl.AdamW(lr=0.3, no_decay=["bias"]).config
    assert (optimizer.t, optimizer.lr) == (0, 0.3)
    with pytest.raises(AttributeError, match="betas is fixed"):
        optimizer.betas = (0.5, 0.5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_and_its_arrays_copied_together_stay_together(name, again):
    w, b = np.ones((2, 3)), np.array(2.0)
    optimizer = type(OPTIMIZERS[name]())(params=[w, b], **OPTIMIZERS[name]().config)
    gradients = RNG.normal(size=(6, 7))
    for g in gradients[:3]:
        optimizer.step([g[:6].reshape(2, 3).copy(), g[6:].reshape(()).copy()])
    both = (w, b, optimizer)
    w2, b2, twin = copy.deepcopy(both) if again is copy.copy else again(both)
    before = w.copy()
    for g in gradients[3:]:
        twin.step([g[:6].reshape(2, 3).copy(), g[6:].reshape(()).copy()])
    assert w.tolist() == before.tolist()
    for g in gradients[3:]:
        optimizer.step([g[:6].reshape(2, 3).copy(), g[6:].reshape(()).copy()])
    assert (w2.tobytes(), b2.tobytes(), twin.t) == (w.tobytes(), b.tobytes(), 6)


def test_an_optimiser_of_torch_parameters_copied_with_them_trains_the_copies():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    net = torch.nn.Linear(3, 2).double()
    optimizer = fl.Adam(params=net.parameters(), lr=0.1)
    net2, twin = copy.deepcopy((net, optimizer))
    before = net.weight.detach().clone()
    twin.step([np.ones((2, 3)), np.ones(2)])
    assert torch.equal(net.weight, before)
    assert not torch.equal(net2.weight, before)


# --- data, schedules, records, errors

@pytest.mark.parametrize("kind", MODELS)
def test_prepared_data_and_batches_are_copied(kind, dtype, again):
    own = trainer(kind, dtype=dtype)
    data, _ = own.prepare(*DATA[kind])
    batch = own.batch(*DATA[kind])
    twin = again(data)
    assert (twin.fingerprint(), twin.n_examples, twin.longest) == (data.fingerprint(), data.n_examples, data.longest)
    assert own.evaluate(twin) == own.evaluate(data)
    assert own.forward(again(batch)) == own.forward(batch)
    empty = again(own.model.make_batch(data))
    assert empty.n_examples == 0


def test_prepared_windows_of_a_text_are_copied(again):
    own = trainer("gpt")
    data, _ = own.prepare("annaotto" * 9)
    twin = again(data)
    assert twin.windows
    assert twin.fingerprint() == data.fingerprint()


def test_what_is_pickled_names_no_instruction_set():
    own = trainer("mlp")
    for made in (own.prepare(X, Y)[0], own.batch(X, Y), own):
        assert f"_core.{_core.isa}".encode() not in pickle.dumps(made)


def cubic(step):
    return 1.0 / (1 + step) ** 3


SCHEDULES = [
    s.constant(0.5), s.linear(), s.linear(1000), s.cosine(9, 0.1), s.exponential(9, 0.1), s.step_decay(3, 0.5),
    s.inverse_sqrt(5), s.one_cycle(30), s.warmup_stable_decay(3, 4, 20), s.warmup(3, s.cosine()), s.warmup(3, cubic),
    s.join([s.linear(), s.warmup(2, s.cosine()), s.inverse_sqrt(3)], [5, 11]), s.join([s.constant(), s.cosine()], [5]),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_are_copied(schedule, again):
    twin = again(schedule)
    assert repr(twin) == repr(schedule)
    assert getattr(twin, "spec", None) == getattr(schedule, "spec", None)
    assert hasattr(twin, "for_steps") == hasattr(schedule, "for_steps")
    if hasattr(schedule, "for_steps"):
        twin, schedule = twin.for_steps(30), schedule.for_steps(30)
    assert [twin(k) for k in range(40)] == [schedule(k) for k in range(40)]


def test_a_schedule_shows_the_call_that_makes_it():
    assert repr(s.linear(1000)) == "linear(steps=1000, end=0.0)"
    assert repr(s.linear()) == "linear(end=0.0)"
    both = s.warmup(5, s.join([s.constant(), s.cosine()], [9]))
    text = "warmup(steps=5, schedule=join(schedules=[constant(factor=1.0), cosine(end=0.0)], boundaries=[9]))"
    assert repr(both) == text
    assert eval(text, vars(s)).spec == both.spec


def test_a_lambda_is_copied_and_pickling_it_names_it():
    own = trainer("mlp", schedule=s.warmup(3, lambda step: 0.5))
    assert copy.deepcopy(own).schedule(9) == 0.5
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(own)


def test_copied_histories_are_independent(again):
    history = trainer("mlp").fit(X, Y, steps=5, validation=(X, Y), eval_every=2)
    twin = again(history)
    assert twin.to_json() == history.to_json()
    twin.append(1.0)
    history.append(2.0)
    assert (twin.loss[-1], history.loss[-1]) == (1.0, 2.0)
    assert twin.evaluations is not history.evaluations


def test_a_pickled_historys_clock_goes_on(monkeypatch):
    clock = iter([100.0, 107.0, 5000.0, 5001.0])
    monkeypatch.setattr("fastloop.history.time.perf_counter", lambda: next(clock))
    twin = pickle.loads(pickle.dumps(fl.History()))
    twin.append(1.0)
    assert twin.seconds.tolist() == [8.0]


def diverged():
    own = fl.Trainer(fl.LinearRegression(1), fl.SGD(lr=50.0))
    with pytest.raises(fl.DivergenceError) as raised:
        own.fit(np.arange(9.0), np.arange(9.0), steps=10_000)
    return raised.value


@pytest.mark.parametrize("error", [
    diverged(), fl.DivergenceError("m", 3, 1.0, np.inf, 0.1, [1.0]), fl.OrderError("m"), fl.DataError("m"),
    fl.CheckpointError("m"),
], ids=lambda error: type(error).__name__)
def test_errors_are_copied(error, again):
    error.add_note("while testing") if hasattr(error, "add_note") else None
    twin = again(error)
    assert (type(twin), str(twin), twin.args) == (type(error), str(error), error.args)
    assert getattr(twin, "__notes__", None) == getattr(error, "__notes__", None)
    if isinstance(error, fl.DivergenceError):
        for name in ("step", "loss", "norm", "lr", "last_norms"):
            np.testing.assert_equal(getattr(twin, name), getattr(error, name))
        assert (twin.history is None) == (error.history is None)
        assert error.history is None or twin.history.to_json() == error.history.to_json()


def test_tokenizers_are_copied(again):
    assert again(TOK) == TOK
    assert again(TOK).encode_docs(DOCS)[0].tolist() == TOK.encode_docs(DOCS)[0].tolist()


@pytest.mark.parametrize("what", ["loop", "core", "optimizer core"])
def test_compiled_objects_are_refused(what, again):
    own = trainer("gpt")
    compiled = {"loop": own.loop, "core": own.model.make_core(), "optimizer core": own.optimizer._core}[what]
    with pytest.raises(TypeError, match="is compiled and cannot be copied or pickled; copy the Trainer or the model"):
        again(compiled)


# --- process pools

def train_on(trainer):
    trainer.fit(DOCS, steps=20, batch_size=2)
    return trainer, trainer.evaluate(DOCS), trainer.model.generate(TOK, 5, seed=2)


def blow_up(_):
    raise diverged()


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_process_pool_trains_and_sends_the_model_back(method, dtype, tmp_path):
    own = trainer("gpt", dtype=dtype, schedule=s.linear())
    own.fit(DOCS, steps=3)
    with multiprocessing.get_context(method).Pool(1) as pool:
        twin, loss, names = pool.apply_async(train_on, [own]).get(timeout=120)
        with pytest.raises(fl.DivergenceError, match="are as they were before this step"):
            pool.apply_async(blow_up, [0]).get(timeout=120)
    assert own.steps == 3
    assert (twin.evaluate(DOCS), twin.model.generate(TOK, 5, seed=2)) == (loss, names)
    twin.save(tmp_path / "run.npz")
    assert fl.Trainer.load(tmp_path / "run.npz").evaluate(DOCS) == loss
    assert train_on(own)[1:] == (loss, names)
    assert bits(own) == bits(twin)
