"""The compiled classes called directly: their attributes, and what they refuse before any memory is touched."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastloop as fl
from fastloop import _core

F = np.zeros
IDS, STARTS = np.array([2, 0, 1, 2, 1, 2], np.int32), np.array([0, 3, 5])


def tokens(variant, T=3):
    return variant.TokenData(IDS, STARTS, T)


def bigram(variant, optimizer=None, V=3, D=2, T=3):
    params, grads = F((2 * V + T) * D), F((2 * V + T) * D)
    if optimizer == "sgd":
        optimizer = variant.SGD([params], [[]], [0.0], [grads], 0.0, 0.0, False)
    return variant.Loop(variant.Bigram(params, grads, V, D, T), optimizer)


def run(variant, splits, steps=1, accumulate=1, losses=None, clipped=None, batch=None, indices=(0, 1), optimizer="sgd"):
    loop = bigram(variant, optimizer)
    batch = variant.TokenBatch(tokens(variant)) if batch is None else batch
    losses = F(steps) if losses is None else losses
    indices, splits = np.array(indices, np.int64), np.array(splits)
    return loop.run(batch, indices, splits, accumulate, F(steps), np.inf, losses, F(steps), clipped=clipped)


def test_attributes_of_the_compiled_objects(variant):
    data = tokens(variant)
    assert (data.n_examples, data.longest, data.windows) == (2, 3, False)
    assert (data.n_ids, data.block_size) == (3, 3)
    batch = variant.TokenBatch(data)
    batch.take(np.array([1, 0, 1]), 3.0)
    assert (batch.n_examples, batch.n_predictions) == (3, 7)
    loop = bigram(variant)
    assert (loop.model.V, loop.model.D, loop.model.T, loop.model.size) == (3, 2, 3, 18)
    assert loop.optimizer is None
    assert variant.MLP(F(13), F(13), [2, 3, 1], False, False).depth == 2
    rows = variant.ArrayData(F((4, 2)), F((4, 3)))
    assert (rows.n_examples, rows.n_in, rows.n_out, rows.largest_class) == (4, 2, 3, -1)
    rows = variant.ArrayData(F((4, 2)), None, np.array([0, 5, 1, 2]))
    assert (rows.n_out, rows.largest_class) == (0, 5)


# The call, the exception, and words of its message.
REFUSED = {
    "negative id": (lambda c: c.TokenData(np.array([0, -1], np.int32), np.array([0, 1]), 1), IndexError, "ids[1] = -1"),
    "text shorter than a window": (lambda c: c.TokenData(IDS, None, 6), ValueError, "no window of 6"),
    "no documents": (lambda c: c.TokenData(IDS, np.array([0]), 1), ValueError, "must lead into ids"),
    "start before the ids": (lambda c: c.TokenData(IDS, np.array([-1, 3]), 1), ValueError, "must lead into ids"),
    "end behind the ids": (lambda c: c.TokenData(IDS, np.array([0, 6]), 1), ValueError, "must lead into ids"),
    "starts that do not rise": (lambda c: c.TokenData(IDS, np.array([0, 3, 3]), 1), ValueError, "starts[2] = 3"),
    "document -1": (lambda c: c.TokenBatch(tokens(c)).take(np.array([0, -1]), 2.0), IndexError, "indices[1] = -1"),
    "document 2 of 2": (lambda c: c.TokenBatch(tokens(c)).take(np.array([2]), 1.0), IndexError, "outside [0, 2)"),
    "rows of X and y": (lambda c: c.ArrayData(F((3, 2)), F((2, 1))), ValueError, "X has 3 rows, y has 2"),
    "rows of X and classes": (lambda c: c.ArrayData(F((3, 2)), None, np.zeros(4, np.int64)), ValueError, "y has 4"),
    "negative class": (lambda c: c.ArrayData(F((2, 1)), None, np.array([0, -1])), IndexError, "y[1] = -1"),
    "row 3 of 3": (
        lambda c: c.ArrayBatch(c.ArrayData(F((3, 1)), F((3, 1)))).take(np.array([3]), 1.0), IndexError, "indices[0] = 3"
    ),
    "parameters and gradients": (lambda c: c.Bigram(F(18), F(17), 3, 2, 3), ValueError, "params (18,) and grads (17,)"),
    "no parameters": (lambda c: c.Model(c.Kernels(), F(0), F(0)), ValueError, "params (0,)"),
    "parameters of a bigram": (lambda c: c.Bigram(F(17), F(17), 3, 2, 3), ValueError, "18 parameters expected, got 17"),
    "parameters of an MLP": (lambda c: c.MLP(F(12), F(12), [2, 3, 1], 0, 0), ValueError, "13 parameters expected"),
    "one width": (lambda c: c.MLP(F(2), F(2), [2], 0, 0), ValueError, "widths = [2]"),
    "a width of 0": (lambda c: c.MLP(F(2), F(2), [2, 0], 0, 0), ValueError, "widths = [2, 0]"),
    "heads": (lambda c: c.GPT(F(228), F(228), 3, 4, 3, 1, 3), ValueError, "a multiple of 3 heads"),
    "rows for documents": (lambda c: bigram(c).forward(c.ArrayBatch(c.ArrayData(F((1, 1))))), TypeError, "TokenBatch"),
    "larger ids": (lambda c: bigram(c, V=2).forward(c.TokenBatch(tokens(c))), ValueError, "ids up to 2"),
    "longer blocks": (lambda c: bigram(c, T=2).forward(c.TokenBatch(tokens(c))), ValueError, "blocks of 3"),
    "splits": (lambda c: run(c, [0, 1, 2]), ValueError, "3 splits of 2 examples for 1 steps"),
    "splits past the indices": (lambda c: run(c, [0, 3]), ValueError, "2 splits of 2 examples"),
    "room for losses": (lambda c: run(c, [0, 1, 2], 2, losses=F(1)), ValueError, "losses (1)"),
    "room for clipped": (lambda c: run(c, [0, 1], clipped=np.zeros(0, np.uint8)), ValueError, "clipped (0)"),
    "a step of nothing": (lambda c: run(c, [0, 1, 1], 2), ValueError, "step 1 has no examples"),
    "more than memory": (lambda c: run(c, [0, 2**57, 2], accumulate=2), MemoryError, "more bytes than can be"),
    "steps without an optimizer": (lambda c: run(c, [0, 1], optimizer=None), TypeError, "without an optimizer"),
    "a step without one": (lambda c: bigram(c).step(0.1), TypeError, "without an optimizer"),
    "work per thread": (lambda c: c.set_work_per_thread(0), ValueError, "n = 0 must be at least 1"),
    "a batch of no kind": (lambda c: run(c, [0, 1], batch=c.Batch()), NotImplementedError, ""),
    "a model of no kind": (lambda c: c.Loop(c.Model(c.Kernels(), F(1), F(1)), None).forward(c.Batch()),
                           NotImplementedError, ""),
    "data of no kind": (lambda c: c.Data().fingerprint(), NotImplementedError, ""),
    "predictions of no kind": (lambda c: c.Data().predictions(np.array([0])), NotImplementedError, ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(variant, case):
    call, error, words = REFUSED[case]
    with pytest.raises(error) as raised:
        call(variant)
    assert words in str(raised.value)


def test_arrays_of_a_workspace_begin_at_multiples_of_64_and_lie_apart(variant):
    sizes = [(1, 8), (0, 8), (9, 8), (3, 48), (64, 1), (65, 1)]
    places = variant.carve(sizes, sizes)
    assert all(place % 64 == 0 for place in places)
    for (n, item), place, following in zip(sizes, places, places[1:], strict=False):
        assert place + n * item <= following


@pytest.mark.parametrize("carved", [[(8, 8), (9, 8)], [(8, 8), (8, 8), (1, 1)], [(8, 8)]])
def test_carving_other_than_what_was_counted_is_an_error(variant, carved):
    with pytest.raises(SystemError, match="128 bytes of workspace were counted, and others carved"):
        variant.carve([(8, 8), (8, 8)], carved)


MOST = sys.maxsize


@pytest.mark.parametrize("sizes", [[(MOST, 1)], [(MOST // 8 + 1, 8)], [(-1, 8)], [(MOST // 2, 1)] * 3])
def test_a_workspace_of_more_bytes_than_can_be_addressed_is_refused(variant, sizes):
    with pytest.raises(MemoryError, match="more bytes than can be addressed"):
        variant.carve(sizes, sizes)


def test_a_workspace_that_the_machine_does_not_have_is_refused(variant):
    with pytest.raises(MemoryError, match=f"{MOST // 2 + 1} bytes of workspace"):
        variant.carve([(MOST // 2, 1)], [])


def test_a_models_tensors_lie_in_the_order_that_its_compiled_class_tells(variant):
    models = [fl.BigramLM(5, 3, 4), fl.GPT(5, 4, 2, 2, 3), fl.MLP([2, 3, 4, 1])]
    told = [variant.Bigram.tensors(5, 3, 4), variant.GPT.tensors(5, 4, 3, 2, 2), variant.MLP.tensors([2, 3, 4, 1])]
    for model, tensors in zip(models, told, strict=True):
        assert [(name, model.params[name].shape) for name in model.params] == list(tensors.items())
        begins = [model.params[name].ctypes.data for name in model.params]
        assert begins == sorted(begins)


def test_parameters_of_another_number_than_the_tensors_hold_are_refused(variant):
    expected = sum(np.prod(shape) for shape in variant.GPT.tensors(3, 4, 3, 2, 4).values())
    for size in (expected - 1, expected + 1):
        with pytest.raises(ValueError, match=f"{expected} parameters expected, got {size}"):
            variant.GPT(F(size), F(size), 3, 4, 3, 2, 4)


def chain(c, *blocks, D=6):
    """The blocks of layers of which each reads what the one before made, and the last value; "+" adds to the first."""
    layers = [[c.Embedding(3, D, 3)]]
    first = x = layers[0][0].y
    kinds = {
        "norm": lambda: c.RMSNorm(x), "tanh": lambda: c.Activation(x, "tanh"),
        "attention": lambda: c.Attention(x, 1, 3),
        "linear": lambda: c.Linear(x, D, (name,)), "narrow": lambda: c.Linear(x, D - 1, (name,)),
        "triple": lambda: c.Linear(x, D, (name, name + "k", name + "v")),
        "+": lambda: c.Linear(x, D, (name,), into=first),
    }
    for b, block in enumerate(blocks):
        layers += [[]] * (b > 0)
        for kind in block.split():
            name = f"w{b}.{len(layers[b])}"
            layers[b] = [*layers[b], kinds[kind]()]
            x = layers[b][-1].y
    return layers, x


def of_blocks(c, layers, x):
    """A model of the layers, its parameters and its gradients."""
    head = c.Head(x, 3, 3)
    size = sum(np.prod(shape) for shape in c.Blocks.tensors_of(layers, head).values())
    params, grads = np.random.default_rng(1).normal(0.0, 0.5, size), F(size)
    return c.Blocks(params, grads, layers, head), params, grads


@pytest.mark.parametrize("blocks, words", [
    (["linear", "norm linear norm"], "block 1 has 3 layers, expected 1 to 2"),
    (["linear", ""], "block 1 has 0 layers"),
    (["linear", "norm"], "block 1 has RMSNorm of 6 features where the first has Linear of 6"),
    (["linear", "narrow"], "block 1 has Linear of 5 features where the first has Linear of 6"),
    (["linear tanh", "linear tanh"], "block 0 ends in Activation, whose gradient"),
    (["triple attention"], "the last layer is Attention"),
    (["linear +"], "Linear reads a value with a sum"),
    (["triple attention tanh"], "backward of the layer that made them"),
    (["linear tanh tanh"], "backward of the layer that made them"),
])
def test_layers_that_do_not_fit_together_are_refused(variant, blocks, words):
    with pytest.raises(ValueError, match=words):
        of_blocks(variant, *chain(variant, *blocks))


def test_a_value_that_two_layers_read_is_refused(variant):
    layers, x = chain(variant, "linear norm")
    with pytest.raises(ValueError, match="Linear reads a value that another layer reads"):
        of_blocks(variant, [[*layers[0], variant.Linear(layers[0][0].y, 6, ("w",))]], x)


@pytest.mark.parametrize("blocks", [["norm tanh linear"], ["norm linear +"], ["tanh"], ["linear", "linear", "linear"]])
def test_gradients_of_layers_that_share_memory_are_those_of_differences(variant, blocks):
    model, params, grads = of_blocks(variant, *chain(variant, *blocks))
    loop, batch = variant.Loop(model, None), variant.TokenBatch(tokens(variant))
    batch.take(np.array([0, 1]), 5.0)
    loop.forward(batch)
    loop.backward()
    for i, value in enumerate(params):
        losses = []
        for step in (1e-5, -1e-5):
            params[i] = value + step
            losses.append(loop.forward(batch))
        params[i] = value
        assert grads[i] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-7, abs=1e-8)


def test_outputs_of_another_shape_are_refused_and_not_written(variant):
    loop, batch = bigram(variant), variant.TokenBatch(tokens(variant))
    batch.take(np.array([0, 1]), 2.0)
    mlp = variant.MLP(F(13), F(13), [2, 3, 1], False, False)
    rows = variant.ArrayBatch(variant.ArrayData(F((4, 2))))
    rows.take(np.arange(4), 1.0)
    for shape in ((4, 3), (6, 3), (5, 2), (5, 4)):
        out = np.full(shape, np.nan)
        with pytest.raises(ValueError, match="logits has shape"):
            loop.model.logits_of(batch, out)
        assert np.isnan(out).all()
    for shape in ((3, 1), (5, 1), (4, 2)):
        out = np.full(shape, np.nan)
        with pytest.raises(ValueError, match="out "):
            mlp.predict(rows, out)
        assert np.isnan(out).all()


def test_an_empty_micro_batch_adds_nothing(variant):
    """A step of two micro-batches, the second of no documents, is the step of the first alone."""
    outcomes = []
    for splits, accumulate in (([0, 2, 2], 2), ([0, 2], 1)):
        params, grads = np.linspace(-1.0, 1.0, 18), F(18)
        optimizer = variant.SGD([params], [[]], [0.0], [grads], 0.0, 0.0, False)
        loop, losses, norms = variant.Loop(variant.Bigram(params, grads, 3, 2, 3), optimizer), F(1), F(1)
        batch = variant.TokenBatch(tokens(variant))
        taken = loop.run(batch, np.array([0, 1]), np.array(splits), accumulate, np.ones(1), np.inf, losses, norms)
        assert taken == 1
        outcomes.append([losses, norms, params])
    for x, y in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(x, y)
    assert losses[0] > 0.0
    assert norms[0] > 0.0


def test_gradients_read_without_a_copy_are_released(variant):
    """An optimiser for arrays keeps no reference to a gradient after the step, nor after one that it refuses."""
    optimizer = variant.SGD([F(3)], [[]], [0.0], None, 0.0, 0.0, False)
    good, bad = F(3), np.full(3, np.nan)
    before = sys.getrefcount(good), sys.getrefcount(bad)
    for _ in range(5):
        assert optimizer.step_with([good], 0.1, True) is None
        assert optimizer.step_with([bad], 0.1, True)[0] == 0
        assert optimizer.step_with([F(4)], 0.1, True) == (0, None)
    assert (sys.getrefcount(good), sys.getrefcount(bad)) == before
    good.resize(5, refcheck=False)      # NumPy refuses while a view of the memory exists


@pytest.mark.parametrize("shape", [(2, 3), (6,), (3, 2, 1), (3,)])
def test_a_gradient_of_another_shape_is_not_taken(variant, shape):
    p = np.ones((3, 2))
    optimizer = variant.SGD([p], [[]], [0.0], None, 0.0, 0.0, False)
    assert optimizer.step_with([np.ones(shape)], 0.1, True) == (0, None)
    assert (p == 1.0).all()


# Where the modules do not load

LIBRARY = "libgomp.so.1: cannot open shared object file: No such file or directory"


@pytest.fixture
def fresh_import(tmp_path):
    """A function that imports a copy of fastloop without compiled modules, and returns the one sentence that it ends
    with; `code` runs before."""
    source = Path(_core.__file__).parents[1]
    shutil.copytree(source, tmp_path / "src/fastloop", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))

    def fresh_import(code=""):
        command = [sys.executable, "-c", f"{code}\nimport fastloop"]
        done = subprocess.run(command, cwd=tmp_path / "src", capture_output=True, text=True)
        assert done.returncode == 1
        assert "During handling" not in done.stderr
        return done.stderr.splitlines()[-1]

    return fresh_import


def test_an_unbuilt_source_folder_says_that_it_was_imported(fresh_import, tmp_path):
    assert "holds no compiled modules of fastloop for Python" in fresh_import()
    (tmp_path / "src/setup.py").touch()
    said = fresh_import()
    assert said.startswith(f"ImportError: fastloop was imported from {tmp_path / 'src'}, its source folder, ")
    assert "run `pip install .` there, or start Python in another folder" in said
    assert "partially initialized" not in said


@pytest.mark.parametrize("problem, expected", [
    (LIBRARY, "through libgomp.so.1, which does not load: install it (Debian: libgomp1"),
    ("dlopen(cpu.so, 2): Library not loaded: /opt/lib/libomp.dylib", "through libomp.dylib, which does not load"),
    ("undefined symbol: PyFoo", "do not load (undefined symbol: PyFoo): install fastloop again with Python 3."),
])
def test_modules_that_do_not_load_say_what_to_install(fresh_import, problem, expected):
    assert expected in fresh_import(f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith('fastloop._core.'):
            raise ImportError({problem!r})
sys.meta_path.insert(0, Finder())
""")
