"""The GPT: gradients, the twin, torch, threads, micro-batches, generation, each on the compiled passes themselves."""

from itertools import pairwise

import numpy as np
import pytest

from fastloop._core import variant
from fastloop.reference import GPTStep

V = 11
RAGGED = [5, 9, 1, 16, 21, 3, 8, 2, 12]     # predictions of each document, before the cut to block_size


def make_data(lengths, T, V=V, seed=0):
    """Random documents with so many predictions each; V - 1 separates them."""
    rng = np.random.default_rng(seed)
    ids = [V - 1]
    for length in lengths:
        ids += [*rng.integers(0, V - 1, length - 1), V - 1]
    starts = np.cumsum([0, *lengths])
    return variant.TokenData(np.array(ids, np.int32), starts.astype(np.int64), T)


def make_batch(data, indices=None, total=None):
    indices = np.arange(data.n_examples) if indices is None else np.asarray(indices)
    batch = variant.TokenBatch(data)
    batch.take(indices, float(len(indices) if total is None else total))
    return batch


def arrays(batch):
    return [np.array(a) for a in batch.arrays()]


class Net:
    """A compiled GPT with its buffers, and Adam over them."""

    def __init__(self, D, T, n_layer, n_head, V=V, std=0.3, seed=1):
        self.shape = V, D, T, n_layer, n_head
        self.params = np.random.default_rng(seed).normal(0.0, std, (2 * V + T) * D + n_layer * 12 * D * D)
        self.grads, self.m, self.v = np.zeros((3, self.params.size))
        self.core = variant.GPT(self.params, self.grads, *self.shape)
        self.adam = variant.Adam([self.params], [[self.m, self.v]], [0.0], [self.grads], 0.85, 0.99, 1e-8, False)
        self.loop = variant.Loop(self.core, self.adam)

    def twin(self, dtype=float):
        return GPTStep(self.params.astype(dtype), *self.shape)

    def pass_(self, batch):
        """Loss and gradient of one batch."""
        self.loop.zero_grad()
        loss = self.loop.forward(batch)
        self.loop.backward()
        return loss, self.grads.copy()

    def tensors(self, flat):
        """name -> that tensor's part of a flat buffer."""
        V, D, T, n_layer, _ = self.shape
        sizes = {"wte": V * D, "wpe": T * D}
        for i in range(n_layer):
            sizes |= {f"layer{i}.attn_{name}": D * D for name in ("wq", "wk", "wv", "wo")}
            sizes |= {f"layer{i}.mlp_fc1": 4 * D * D, f"layer{i}.mlp_fc2": 4 * D * D}
        sizes["lm_head"] = V * D
        return dict(zip(sizes, np.split(flat, np.cumsum(list(sizes.values()))[:-1]), strict=True))


@pytest.fixture(autouse=True)
def one_thread():
    variant.set_max_threads(1)
    yield
    variant.set_max_threads(1)


SHAPES = [  # D, T, n_layer, n_head, lengths
    pytest.param(8, 6, 1, 1, [4], id="one-short"),
    pytest.param(8, 6, 1, 4, [9], id="one-cut"),
    pytest.param(12, 6, 2, 4, [5, 9, 1, 6], id="ragged-D12"),
    pytest.param(10, 20, 2, 1, [3, 20, 7, 25], id="straddling-D10"),
]


@pytest.mark.parametrize("D, T, n_layer, n_head, lengths", SHAPES)
def test_gradients_equal_the_complex_step_derivative(D, T, n_layer, n_head, lengths):
    """d loss / d p = Im loss(p + i h) / h with h = 1e-30: exact, and derived from the twin's forward pass alone."""
    net = Net(D, T, n_layer, n_head)
    batch = make_batch(make_data(lengths, T))
    loss, grads = net.pass_(batch)
    twin = net.twin(complex)
    exact = np.empty(net.params.size)
    for i in range(net.params.size):
        twin.params[i] += 1e-30j
        exact[i] = twin.forward(*arrays(batch)).imag / 1e-30
        twin.params[i] = net.params[i]
    assert loss == pytest.approx(twin.forward(*arrays(batch)).real, rel=1e-13)
    got = net.tensors(grads)
    for name, wanted in net.tensors(exact).items():
        assert np.abs(wanted).max() > 0 or name.endswith(("wq", "wk"))   # one prediction alone has nothing to choose
        np.testing.assert_allclose(got[name], wanted, rtol=0, atol=1e-12 * np.abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize("D, n_layer, n_head, T, V, lengths", [
    (16, 1, 4, 16, 27, RAGGED), (7, 1, 7, 5, 3, RAGGED), (32, 2, 4, 300, 27, [1, 290, 300, 13]),
    (64, 1, 2, 16, 300, RAGGED * 3), (69, 1, 3, 16, 27, RAGGED * 3), (8, 1, 1, 1, 11, [1, 4]),
    (16, 1, 4, 8, 3000, RAGGED), (8, 5, 2, 6, 5, RAGGED),
], ids=str)
def test_loss_gradients_and_logits_equal_the_twins(D, n_layer, n_head, T, V, lengths):
    net = Net(D, T, n_layer, n_head, V, std=0.15)
    batch = make_batch(make_data(lengths, T, V))
    loss, grads = net.pass_(batch)
    twin = net.twin()
    assert loss == pytest.approx(twin.forward(*arrays(batch)), rel=1e-13)
    twin.backward()
    wanted = net.tensors(twin.grads)
    for name, got in net.tensors(grads).items():
        np.testing.assert_allclose(got, wanted[name], rtol=0, atol=1e-12 * np.abs(wanted[name]).max(), err_msg=name)
    logits = np.full(twin.logits.shape, np.nan)
    net.core.logits_of(batch, logits)
    np.testing.assert_allclose(logits, twin.logits, rtol=0, atol=1e-12 * np.abs(twin.logits).max())


def test_fifty_steps_follow_the_twin():
    net, batch = Net(8, 8, 2, 2), make_batch(make_data(RAGGED, 8))
    twin = net.twin()
    for _ in range(50):
        loss, _ = net.pass_(batch)
        net.loop.step(0.01)
        twin.zero_grad()
        assert loss == pytest.approx(twin.forward(*arrays(batch)), rel=1e-11)
        twin.backward()
        twin.step(lr=0.01)
    np.testing.assert_allclose(net.params, twin.params, rtol=0, atol=1e-10)


@pytest.mark.parametrize("D", [16, 32])
def test_200_steps_follow_autograd(D):
    torch = pytest.importorskip("torch", reason="compared with torch's float64 autograd, and torch is not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        follow(torch, D)
    finally:
        torch.set_num_threads(threads)


def follow(torch, D, T=16, steps=200):
    net = Net(D, T, 1, 4, 27, std=0.08)
    data = make_data(RAGGED * 4, T, 27)
    order = np.arange(steps * 3) % data.n_examples
    lrs = 0.01 * (1.0 - np.arange(steps) / steps)
    tensors = [torch.tensor(value, requires_grad=True) for value in net.tensors(net.params.copy()).values()]
    adam = torch.optim.Adam(tensors, betas=(0.85, 0.99), eps=1e-8)

    def norm(x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)

    def document_loss(ids):
        wte, wpe, wq, wk, wv, wo, fc1, fc2, head = [
            t.reshape(-1, 4 * D) if i == 7 else t.reshape(-1, D) for i, t in enumerate(tensors)]
        x = norm(wte[ids[:-1]] + wpe[: len(ids) - 1])
        y = norm(x)
        q, k, v = ((y @ w.T).reshape(len(y), 4, D // 4).transpose(0, 1) for w in (wq, wk, wv))
        scores = q @ k.transpose(1, 2) / (D // 4) ** 0.5
        mask = torch.ones(len(y), len(y), dtype=torch.bool).triu(1)
        o = scores.masked_fill(mask, -torch.inf).softmax(-1) @ v
        x = x + o.transpose(0, 1).reshape(len(y), D) @ wo.T
        x = x + torch.relu(norm(x) @ fc1.T) @ fc2.T
        return torch.nn.functional.cross_entropy(x @ head.T, ids[1:])

    wanted = np.empty(steps)
    for s in range(steps):
        for group in adam.param_groups:
            group["lr"] = lrs[s]
        docs = []
        for i in order[3 * s : 3 * s + 3]:
            inputs, targets, _, _ = arrays(make_batch(data, [i]))
            docs.append(torch.tensor([inputs[0], *targets]))
        adam.zero_grad()
        loss = sum(document_loss(ids) for ids in docs) / 3
        loss.backward()
        adam.step()
        wanted[s] = loss.item()
    losses, norms = np.full((2, steps), np.nan)
    net.loop.run(variant.TokenBatch(data), order, np.arange(steps + 1) * 3, 1, lrs, np.inf, losses, norms)
    np.testing.assert_allclose(losses, wanted, rtol=0, atol=1e-9)
    assert losses[-10:].mean() < losses[:10].mean() - 0.1       # it was trained, not merely repeated


def trained(threads, by_hand=False, D=32, T=40, n_layer=2, documents=24, steps=4):
    """Losses and parameters after a few steps."""
    variant.set_max_threads(threads)
    net = Net(D, T, n_layer, 4, 27, std=0.1)
    data = make_data((RAGGED * 8)[:2 * documents] + [60], T, 27)
    order = np.arange(documents * steps) % data.n_examples
    losses, norms = np.full((2, steps), np.nan)
    if by_hand:
        for s in range(steps):
            net.loop.zero_grad()
            losses[s] = net.loop.forward(make_batch(data, order[s * documents : (s + 1) * documents]))
            net.loop.backward()
            norms[s] = net.loop.grad_norm()
            net.loop.step(0.01)
    else:
        net.loop.run(variant.TokenBatch(data), order, np.arange(steps + 1) * documents, 1, np.full(steps, 0.01), np.inf,
                     losses, norms)
    assert np.isfinite(losses).all()
    return losses.tobytes() + norms.tobytes() + net.params.tobytes()


@pytest.mark.parametrize("shape", [{}, {"D": 96, "documents": 1}, {"D": 20, "T": 8}], ids=str)
def test_the_same_bits_at_any_number_of_threads(shape, many_threads):
    wanted = trained(1, **shape)
    for threads in (2, 3, 4, 8):
        assert trained(threads, **shape) == wanted, threads


def test_the_same_bits_by_hand():
    assert trained(1, by_hand=True) == trained(1)


@pytest.mark.parametrize("cuts", [[0, 4, 9], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 7, 8, 9]], ids=str)
def test_micro_batches_add_up_to_the_batch(cuts):
    """A document's values do not depend on its neighbours, and gradients add up token by token: the bits are equal."""
    net = Net(16, 16, 2, 4)
    data = make_data(RAGGED, 16)
    loss, grads = net.pass_(make_batch(data))
    net.loop.zero_grad()
    total = 0.0
    for first, last in pairwise(cuts):
        total += net.loop.forward(make_batch(data, np.arange(first, last), total=len(RAGGED)))
        net.loop.backward()
    assert total == pytest.approx(loss, rel=1e-14)
    np.testing.assert_array_equal(net.grads, grads)


def test_a_pass_leaves_nothing_behind():
    """Workspace is reused: a batch gives the same bits after a larger one, and after one of NaN, as at first."""
    data = make_data(RAGGED, 16)
    small, large = make_batch(data, [1, 2]), make_batch(data)
    net = Net(12, 16, 2, 4)
    loss, grads = net.pass_(small)
    net.pass_(large)
    kept = net.params.copy()
    net.params[:] = np.nan
    assert np.isnan(net.pass_(large)[0])
    net.params[:] = kept
    again, grads_again = net.pass_(small)
    assert again == loss
    np.testing.assert_array_equal(grads_again, grads)


@pytest.mark.parametrize(
    "tensor", ["wte", "layer0.attn_wq", "layer0.attn_wv", "layer1.mlp_fc1", "layer1.mlp_fc2", "lm_head"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_loss(tensor, value):
    """ReLU and the masked softmax must not swallow it."""
    net = Net(12, 16, 2, 4)
    net.tensors(net.params)[tensor][:] = value
    assert not np.isfinite(net.loop.forward(make_batch(make_data(RAGGED, 16))))


@pytest.mark.parametrize("D, T, n_layer, n_head, V", [(16, 16, 1, 4, 27), (12, 21, 2, 1, 5), (64, 40, 2, 4, 300)])
def test_generation_with_the_cache_equals_the_forward_pass(D, T, n_layer, n_head, V):
    """Eight documents side by side, fed token by token, give the logits that a whole forward pass gives."""
    net = Net(D, T, n_layer, n_head, V)
    data = make_data([T + 3] * 8, T, V)
    batch = make_batch(data)
    wanted = np.empty((8 * T, V))
    net.core.logits_of(batch, wanted)
    wanted = wanted.reshape(8, T, V)
    ids = arrays(batch)[0].reshape(8, T)
    for B in (8, 3, 1):
        logits = np.full((B, V), np.nan)
        for t in range(T):
            net.core.generate_step(ids[:B, t].copy(), t, logits)
            np.testing.assert_allclose(logits, wanted[:B, t], rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_generation_leaves_training_alone():
    net = Net(16, 16, 1, 4)
    batch = make_batch(make_data(RAGGED, 16))
    _, grads = net.pass_(batch)
    net.loop.zero_grad()
    net.loop.forward(batch)
    net.core.generate_step(np.array([3]), 0, np.empty((1, V)))
    net.loop.backward()
    np.testing.assert_array_equal(net.grads, grads)


@pytest.mark.parametrize("tokens, position, shape, error, message", [
    ([1], 2, (1, V), ValueError, "position = 2 follows 1; only 1 positions were given"),
    ([1], -1, (1, V), IndexError, r"position = -1 is outside \[0, 16\)"),
    ([1], 16, (1, V), IndexError, r"position = 16 is outside \[0, 16\)"),
    ([1, V], 1, (2, V), IndexError, rf"tokens\[1\] = {V} is outside \[0, {V}\)"),
    ([-1], 1, (1, V), IndexError, rf"tokens\[0\] = -1 is outside \[0, {V}\)"),
    ([], 1, (0, V), ValueError, "0 tokens; 1 to 8"),
    ([1] * 9, 1, (9, V), ValueError, "9 tokens; 1 to 8"),
    ([1, 2], 1, (1, V), ValueError, rf"logits has shape \(1, {V}\), not \(2, {V}\)"),
    ([1], 1, (1, V + 1), ValueError, rf"logits has shape \(1, {V + 1}\), not \(1, {V}\)"),
])
def test_generation_refuses(tokens, position, shape, error, message):
    net = Net(16, 16, 1, 4)
    net.core.generate_step(np.array([3]), 0, np.empty((1, V)))
    with pytest.raises(error, match=message):
        net.core.generate_step(np.array(tokens, np.int64), position, np.empty(shape))


@pytest.mark.parametrize("size, shape, message", [
    (1, (V, 16, 16, 1, 4), "parameters expected, got 1"),
    (10, (V, 16, 16, 1, 3), "a width of 16 is not a multiple of 3 heads"),
    (10, (V, 16, 16, 1, 0), "a width of 16 is not a multiple of 0 heads"),
])
def test_a_gpt_that_does_not_fit_is_refused(size, shape, message):
    with pytest.raises(ValueError, match=message):
        variant.GPT(np.zeros(size), np.zeros(size), *shape)


def test_a_batch_that_does_not_fit_is_refused():
    net = Net(16, 8, 1, 4)
    with pytest.raises(ValueError, match="blocks of 16 do not fit"):
        net.loop.forward(make_batch(make_data([3], 16)))
