"""Schedules: values against torch and other formulas, edges, composition, specs, wrong arguments."""

import json
import math

import numpy as np
import pytest

import fastloop as fl
from fastloop import schedules as s


def values(schedule, steps):
    return np.array([schedule(step) for step in range(steps)])


def torch_factors(make, steps):
    """The learning rates of a torch scheduler over an optimiser with lr 1."""
    torch = pytest.importorskip("torch", reason="torch is not installed: its schedulers cannot be compared")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    factors = []
    for _ in range(steps):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return np.array(factors)


# Each beside torch's own, for as many steps as torch's is defined.
@pytest.mark.parametrize("schedule, make, steps", [
    (s.constant(0.5), lambda t, o: t.ConstantLR(o, 0.5, total_iters=1000), 50),
    (s.linear(40), lambda t, o: t.LinearLR(o, 1.0, 0.0, total_iters=40), 60),
    (s.linear(40, end=0.25), lambda t, o: t.LinearLR(o, 1.0, 0.25, total_iters=40), 60),
    (s.cosine(40), lambda t, o: t.CosineAnnealingLR(o, 40), 41),
    (s.cosine(40, end=0.1), lambda t, o: t.CosineAnnealingLR(o, 40, eta_min=0.1), 41),
    (s.exponential(100, end=0.97**100), lambda t, o: t.ExponentialLR(o, 0.97), 101),
    (s.step_decay(7, gamma=0.3), lambda t, o: t.StepLR(o, 7, gamma=0.3), 50),
    (s.one_cycle(50), lambda t, o: t.OneCycleLR(o, 1.0, total_steps=50), 50),
    (s.one_cycle(37, 0.45, 10.0, 100.0),
     lambda t, o: t.OneCycleLR(o, 1.0, total_steps=37, pct_start=0.45, div_factor=10.0, final_div_factor=100.0), 37),
    (s.warmup(9, s.linear(30)),
     lambda t, o: t.SequentialLR(
         o, [t.LinearLR(o, 0.1, 1.0, total_iters=9), t.LinearLR(o, 1.0, 0.0, total_iters=30)], [9]), 50),
    (s.warmup_stable_decay(4, 10, steps=30, end=0.2),
     lambda t, o: t.SequentialLR(
         o, [t.LinearLR(o, 0.2, 1.0, total_iters=4), t.LinearLR(o, 1.0, 0.2, total_iters=10)], [20]), 40),
])
def test_equal_to_torch(schedule, make, steps):
    np.testing.assert_allclose(values(schedule, steps), torch_factors(make, steps), rtol=1e-12)


# The same without torch, from formulas written another way.
@pytest.mark.parametrize("schedule, formula", [
    (s.linear(40, end=0.25), lambda k: np.interp(k, [0, 40], [1.0, 0.25])),
    (s.cosine(40, end=0.1), lambda k: 0.1 + 0.9 * np.cos(np.pi * np.minimum(k, 40) / 80) ** 2),
    (s.exponential(40, end=0.05), lambda k: np.exp(np.interp(k, [0, 40], [0.0, math.log(0.05)]))),
    (s.step_decay(7, gamma=0.5), lambda k: np.ldexp(1.0, -(k // 7))),
    (s.inverse_sqrt(16), lambda k: (1.0 + k / 16) ** -0.5),
    (s.one_cycle(41, pct_start=11 / 41, div_factor=4.0, final_div_factor=10.0),
     lambda k: np.where(k < 10, 0.25 + 0.75 * np.sin(np.pi * k / 20) ** 2,
                        0.025 + 0.975 * np.cos(np.pi * (np.minimum(k, 40) - 10) / 60) ** 2)),
    (s.warmup_stable_decay(4, 10, steps=30, end=0.2), lambda k: np.interp(k, [-1, 4, 20, 30], [0.0, 1.0, 1.0, 0.2])),
    (s.warmup(9, s.inverse_sqrt(10)), lambda k: np.minimum((k + 1) / 10, np.sqrt(10 / (k + 1)))),       # Vaswani et al.
    (s.warmup(3), lambda k: np.minimum((k + 1) / 4, 1.0)),
])
def test_equal_to_another_formula(schedule, formula):
    np.testing.assert_allclose(values(schedule, 60), formula(np.arange(60)), rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("schedule, first, last, beyond", [
    (s.constant(), 1.0, 1.0, 1.0),
    (s.linear(10), 1.0, 1.0 - 0.9, 0.0),
    (s.linear(1), 1.0, 0.0, 0.0),
    (s.linear(10, end=2.0), 1.0, 1.9, 2.0),
    (s.cosine(10, end=0.1), 1.0, 0.1 + 0.45 * (1 + math.cos(0.9 * math.pi)), 0.1),
    (s.exponential(10, end=0.5), 1.0, 0.5**0.9, 0.5),
    (s.step_decay(10), 1.0, 1.0, 0.1),
    (s.one_cycle(10), 1 / 25, 1 / 25e4, 1 / 25e4),
    (s.one_cycle(2), 0.5 * (1 + math.cos(math.pi * 0.4 / 1.4)), 1 / 25e4, 1 / 25e4),
    (s.one_cycle(10, pct_start=0.1), 1.0, 1 / 25e4, 1 / 25e4),
    (s.one_cycle(10, pct_start=0.0), 0.5 * (1 + math.cos(math.pi * 0.1)), 1 / 25e4, 1 / 25e4),
    (s.warmup_stable_decay(0, 10, steps=10), 1.0, 1.0 - 0.9, 0.0),
    (s.warmup_stable_decay(9, 1, steps=10), 0.1, 1.0, 0.0),
    (s.warmup(0, s.linear(10)), 1.0, 1.0 - 0.9, 0.0),
    (s.warmup(10, s.constant(0.5)), 0.5 / 11, 5 / 11, 0.5),
])
def test_first_last_and_beyond(schedule, first, last, beyond):
    """Steps 0, 9 and 10, and far beyond; for the one of one or two steps, its own last."""
    n = schedule.spec.get("steps", 10) if schedule.spec["name"] in ("linear", "one_cycle") else 10
    assert schedule(0) == pytest.approx(first, rel=1e-4)
    if n > 1:
        assert schedule(n - 1) == pytest.approx(last, rel=1e-12)
    assert schedule(n) == pytest.approx(beyond, rel=1e-12)
    if schedule.spec["name"] != "step_decay":
        assert schedule(10**9) == schedule(n)


def test_plain_floats_and_numpy_steps():
    for schedule in (s.linear(10), s.cosine(10), s.one_cycle(10), s.join([s.constant(), s.linear(5)], [5])):
        assert schedule(np.int64(7)) == schedule(7)
        assert type(schedule(7)) is float


# --- composition

def test_join_counts_each_from_its_boundary():
    joined = s.join([s.constant(0.5), s.linear(4), lambda step: 100.0 + step], [3, 7])
    assert values(joined, 9).tolist() == [0.5, 0.5, 0.5, 1.0, 0.75, 0.5, 0.25, 100.0, 101.0]
    assert s.join([s.linear(4)], [])(1) == 0.75


def test_a_length_from_fit_is_passed_on_through_the_composition():
    assert s.warmup(100, s.cosine()).for_steps(1000).spec["schedule"] == {"name": "cosine", "steps": 900, "end": 0.0}
    assert s.join([s.constant(), s.linear()], [30]).for_steps(100).spec["schedules"][1]["steps"] == 70
    # In the middle the boundaries say it.
    assert s.join([s.linear(), s.constant(0.1)], [30]).spec["schedules"][0]["steps"] == 30
    deep = s.warmup(10, s.join([s.constant(), s.warmup(5, s.one_cycle())], [20])).for_steps(100)
    assert deep.spec["schedule"]["schedules"][1]["schedule"]["steps"] == 100 - 10 - 20 - 5
    for bound in (deep, s.linear(5), s.warmup(3)):
        assert not hasattr(bound, "for_steps")


def test_the_same_length_by_fit_and_by_hand():
    for loose, bound in [
        (s.linear(end=0.1), s.linear(50, 0.1)),
        (s.cosine(end=0.1), s.cosine(50, 0.1)),
        (s.exponential(end=0.1), s.exponential(50, 0.1)),
        (s.one_cycle(None, 0.5, 2.0, 3.0), s.one_cycle(50, 0.5, 2.0, 3.0)),
        (s.warmup_stable_decay(5, 10, end=0.1), s.warmup_stable_decay(5, 10, 50, 0.1)),
        (s.warmup(10, s.cosine(end=0.1)), s.warmup(10, s.cosine(40, 0.1))),
    ]:
        assert values(loose.for_steps(50), 60).tolist() == values(bound, 60).tolist()
        assert loose.for_steps(50).spec == bound.spec
        with pytest.raises(ValueError, match=rf"^{loose.spec['name']}\(\) takes its length from fit"):
            loose(0)


def test_a_run_too_short_for_its_schedule_is_refused():
    with pytest.raises(ValueError, match="100 steps leaves no steps to a schedule whose last part begins at step 100"):
        s.warmup(100, s.cosine()).for_steps(100)
    with pytest.raises(ValueError, match="steps = 14 has no room for a warm-up of 5 and a decay of 10"):
        s.warmup_stable_decay(5, 10).for_steps(14)


def test_fit_gives_the_length():
    docs = ["anna", "bob", "cleo"]
    tok = fl.CharTokenizer(docs)
    trainer = fl.Trainer(fl.BigramLM(tok.vocab_size), fl.Adam(lr=0.5), tokenizer=tok, schedule=s.warmup(4, s.cosine()))
    assert trainer.fit(docs, steps=20).lr.tolist() == (0.5 * values(s.warmup(4, s.cosine(16)), 20)).tolist()


# --- specs

ALL = [
    s.constant(0.5), s.linear(), s.linear(7, 0.1), s.cosine(), s.cosine(9, 0.1), s.exponential(), s.exponential(9, 0.1),
    s.step_decay(3, 0.5), s.inverse_sqrt(5), s.one_cycle(), s.one_cycle(30, 0.25, 2.0, 3.0),
    s.warmup_stable_decay(3, 4), s.warmup_stable_decay(3, 4, 20, 0.1),
    s.warmup(3), s.warmup(3, s.cosine()), s.warmup(3, s.warmup(4, s.step_decay(2))),
    s.join([s.linear(), s.warmup(2, s.cosine()), s.inverse_sqrt(3)], [5, 11]), s.join([s.constant(), s.cosine()], [5]),
]


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: schedule.spec["name"])
def test_through_json_and_back(schedule):
    again = s.from_spec(json.loads(json.dumps(schedule.spec)))
    assert again.spec == schedule.spec
    assert hasattr(again, "for_steps") == hasattr(schedule, "for_steps")
    if hasattr(schedule, "for_steps"):
        again, schedule = again.for_steps(40), schedule.for_steps(40)
    assert values(again, 50).tolist() == values(schedule, 50).tolist()


def test_every_maker_is_described():
    assert {schedule.spec["name"] for schedule in ALL} == set(s.__all__) - {"from_spec"}


def test_a_spec_holds_plain_values_of_its_own():
    boundaries = [5]
    joined = s.join([s.linear(np.int64(5), np.float64(0.5)), s.constant(2)], boundaries)
    assert json.loads(json.dumps(joined.spec)) == joined.spec
    boundaries[0] = joined.spec["boundaries"][0] = 1
    assert joined(3) == 0.7


def test_a_users_own_function_has_no_spec_nor_what_contains_it():
    for schedule in (s.warmup(3, lambda step: 1.0), s.join([s.constant(), lambda step: 1.0], [5])):
        assert not hasattr(schedule, "spec")
        assert schedule(9) == 1.0


@pytest.mark.parametrize("spec", [
    None, "linear", [], {}, {"name": "nonsense"}, {"name": ["linear"]}, {"name": "from_spec", "spec": {}},
    {"name": "linear", "steps": "7"}, {"name": "linear", "steps": 0}, {"name": "linear", "length": 7},
    {"name": "step_decay"}, {"name": "warmup", "steps": 3, "schedule": {"name": "nonsense"}},
    {"name": "warmup", "steps": 3, "schedule": "linear"}, {"name": "join", "schedules": {}, "boundaries": []},
])
def test_from_spec_refuses_what_is_not_one(spec):
    with pytest.raises(ValueError, match=r"^not the description of a schedule: "):
        s.from_spec(spec)


# --- wrong arguments

@pytest.mark.parametrize("call, error, words", [
    (lambda: s.linear(0), ValueError, "steps = 0 must be an int of at least 1"),
    (lambda: s.linear(10.0), TypeError, "steps = 10.0 must be an int of at least"),
    (lambda: s.cosine(True), TypeError, "steps = True must be an int of at least"),
    (lambda: s.linear(end=-0.1), ValueError, r"end = -0.1 is outside \[0.0, inf\)"),
    (lambda: s.cosine(end=math.nan), ValueError, r"end = nan is outside \[0.0, inf\)"),
    (lambda: s.cosine(end="0"), TypeError, "end = '0' is a str; expected a number"),
    (lambda: s.exponential(end=0.0), ValueError, r"end = 0.0 is outside \(0.0, inf\)"),
    (lambda: s.constant(math.inf), ValueError, r"factor = inf is outside \[0.0, inf\)"),
    (lambda: s.step_decay(0), ValueError, "every = 0 must be an int of at least 1"),
    (lambda: s.step_decay(5, 0.0), ValueError, r"gamma = 0.0 is outside \(0.0, inf\)"),
    (lambda: s.inverse_sqrt(0), ValueError, "timescale = 0 must be an int of at least 1"),
    (lambda: s.one_cycle(1), ValueError, "steps = 1 must be an int of at least 2"),
    (lambda: s.one_cycle(pct_start=1.0), ValueError, r"pct_start = 1.0 is outside \[0, 1\)"),
    (lambda: s.one_cycle(div_factor=0), ValueError, r"div_factor = 0 is outside \(0.0, inf\)"),
    (lambda: s.one_cycle(final_div_factor=-1), ValueError, r"final_div_factor = -1 is outside \(0.0, inf\)"),
    (lambda: s.warmup_stable_decay(-1, 5), ValueError, "warmup = -1 must be an int of at least 0"),
    (lambda: s.warmup_stable_decay(1, 0), ValueError, "decay = 0 must be an int of at least 1"),
    (lambda: s.warmup(-1), ValueError, "steps = -1 must be an int of at least 0"),
    (lambda: s.warmup(3, 0.5), TypeError, "schedule must be a function of the step, got 0.5"),
    (lambda: s.warmup(3, s.cosine()).for_steps(5.0), TypeError, "steps = 5.0 must be an int of at least"),
    (lambda: s.join([s.linear(5), 1.0], [5]), TypeError, r"schedules\[1\] must be a function of the step, got 1.0"),
    (lambda: s.join([s.linear(5)], [5]), ValueError, "1 schedules need 0 boundaries, got 1"),
    (lambda: s.join([], []), ValueError, "0 schedules need"),
    (lambda: s.join(s.linear(5), []), TypeError, "schedules must be a list, got"),
    (lambda: s.join([s.constant()] * 3, [5, 5]), ValueError, r"boundaries\[1\] = 5 must be greater than 5"),
    (lambda: s.join([s.constant()] * 2, [0]), ValueError, r"boundaries\[0\] = 0 must be an int of at least 1"),
    (lambda: s.join([s.constant()] * 2, [1.5]), TypeError, r"boundaries\[0\] = 1.5 must be an int of at least"),
])
def test_wrong_arguments(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()
