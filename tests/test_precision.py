"""float32 against float64 at the same weights, beside PyTorch in float32: gradients, and runs of 200 steps.

The promise: over many random shapes and batches, the largest error of a float32 gradient is no larger than that of
PyTorch on the same numbers; and so is the median error of the parameters after a run.  (The largest error of a run is
that of the one where rounding has turned a ReLU on or off, which is chance, for either.)  An error is relative: the
norm of the difference over that of the exact.
"""

import numpy as np
import pytest

import fastloop as fl

torch = pytest.importorskip("torch", reason="PyTorch is what the errors are compared with")
F = torch.nn.functional

CONFIGURATIONS = 50
ADAM = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-4}
WORDS = fl.load_docs()
TOK = fl.CharTokenizer(WORDS)


def documents(rng):
    return [WORDS[i] for i in rng.choice(len(WORDS), rng.integers(1, 33), replace=False)]


def padded(docs, block_size):
    """Inputs, targets (B, L) and weights (B, L) of a batch of documents, as the loss weighs them."""
    ids = [[TOK.bos, *TOK.encode(doc), TOK.bos][: block_size + 1] for doc in docs]
    L = max(map(len, ids)) - 1
    inputs, targets = (np.zeros((len(docs), L), np.int64) for _ in range(2))
    weights = np.zeros((len(docs), L))
    for b, row in enumerate(ids):
        n = len(row) - 1
        inputs[b, :n], targets[b, :n], weights[b, :n] = row[:-1], row[1:], 1.0 / (len(docs) * n)
    return torch.tensor(inputs), torch.tensor(targets), torch.tensor(weights, dtype=torch.float32)


def loss_of_logits(logits, targets, weights):
    losses = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none")
    return (losses * weights.reshape(-1)).sum()


def bigram(rng):
    model = fl.BigramLM(
        TOK.vocab_size, n_embd=int(rng.integers(1, 65)), block_size=int(rng.integers(1, 13)),
        seed=int(rng.integers(99)), init_std=float(10.0 ** rng.uniform(-1.5, 0.0)), dtype="float32",
    )

    def loss(p, data):
        inputs, targets, weights = data
        x = F.embedding(inputs, p["wte"]) + p["wpe"][: inputs.shape[1]]
        return loss_of_logits(F.linear(x, p["lm_head"]), targets, weights)

    docs = documents(rng)
    return model, (docs,), loss, padded(docs, model.block_size)


def gpt(rng):
    heads = int(rng.integers(1, 5))
    model = fl.GPT(
        TOK.vocab_size, n_embd=heads * int(rng.integers(1, 17)), n_head=heads, n_layer=int(rng.integers(1, 4)),
        block_size=int(rng.integers(2, 17)), seed=int(rng.integers(99)),
        init_std=float(10.0 ** rng.uniform(-1.7, -0.7)), dtype="float32",
    )
    D = model.n_embd

    def loss(p, data):
        inputs, targets, weights = data
        B, L = inputs.shape
        x = F.rms_norm(F.embedding(inputs, p["wte"]) + p["wpe"][:L], (D,), eps=1e-5)
        for i in range(model.n_layer):
            y = F.rms_norm(x, (D,), eps=1e-5)
            q, k, v = (
                F.linear(y, p[f"layer{i}.attn_{name}"]).view(B, L, heads, D // heads).transpose(1, 2)
                for name in ("wq", "wk", "wv")
            )
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, L, D)
            x = x + F.linear(o, p[f"layer{i}.attn_wo"])
            y = F.rms_norm(x, (D,), eps=1e-5)
            x = x + F.linear(F.relu(F.linear(y, p[f"layer{i}.mlp_fc1"])), p[f"layer{i}.mlp_fc2"])
        return loss_of_logits(F.linear(x, p["lm_head"]), targets, weights)

    docs = documents(rng)
    return model, (docs,), loss, padded(docs, model.block_size)


def network(rng, hidden, loss_name, activation):
    """An MLP, or without a hidden layer a regression."""
    widths = [int(n) for n in rng.integers(2, 40, hidden + 2)]
    N, seed = int(rng.integers(1, 65)), int(rng.integers(99))
    if hidden:
        model = fl.MLP(widths, activation, loss_name, seed=seed, dtype="float32")
    else:
        make = fl.LinearRegression if loss_name == "mse" else fl.SoftmaxRegression
        model = make(*widths, seed=seed, init_std=0.5, dtype="float32")
    X = rng.normal(size=(N, widths[0])).astype(np.float32)
    y = rng.integers(widths[-1], size=N) if loss_name == "cross_entropy" else rng.normal(size=(N, widths[-1]))
    if y.dtype != np.int64:
        y = y.astype(np.float32)

    def loss(p, data):
        x, y = data
        for i in range(hidden + 1):
            x = F.linear(x, p[f"layer{i}.weight"], p[f"layer{i}.bias"])
            if i < hidden:
                x = F.relu(x) if activation == "relu" else torch.tanh(x)
        return F.cross_entropy(x, y) if loss_name == "cross_entropy" else F.mse_loss(x, y)

    return model, (X, y), loss, (torch.tensor(X), torch.tensor(y))


MODELS = {
    "bigram": bigram,
    "gpt": gpt,
    "linear": lambda rng: network(rng, 0, "mse", "relu"),
    "softmax": lambda rng: network(rng, 0, "cross_entropy", "relu"),
    "relu": lambda rng: network(rng, int(rng.integers(1, 4)), "mse", "relu"),
    "tanh": lambda rng: network(rng, int(rng.integers(1, 4)), "cross_entropy", "tanh"),
}


def trainer_of(model):
    tokenizer = TOK if isinstance(model, fl.models.LanguageModel) else None
    return fl.Trainer(model, fl.Adam(**ADAM), tokenizer=tokenizer)


def gradient(model, data):
    trainer = trainer_of(model)
    trainer.zero_grad()
    trainer.forward(trainer.batch(*data))
    trainer.backward()
    return model.grads


def tensors_of(model):
    return {name: torch.tensor(p, requires_grad=True) for name, p in model.params.items()}


def error(found, exact):
    """Of all tensors as one vector."""
    difference = [np.ravel(np.asarray(found[name]) - exact[name]) for name in exact]
    return np.linalg.norm(np.concatenate(difference)) / np.linalg.norm(exact.flat)


def compare(name, measure, over):
    """The largest or median errors of fastloop and of PyTorch over the configurations."""
    torch.set_num_threads(1)
    errors = [measure(*MODELS[name](np.random.default_rng([7, i]))) for i in range(CONFIGURATIONS)]
    ours, theirs = over(errors, axis=0)
    print(f"{name}: fastloop {ours:.3e}, PyTorch {theirs:.3e}")
    assert ours <= theirs


@pytest.mark.parametrize("name", MODELS)
def test_a_float32_gradient_is_as_near_to_float64_as_pytorchs(name):
    def measure(model, data, loss, tensors):
        exact = gradient(model.astype("float64"), data)
        p = tensors_of(model)
        loss(p, tensors).backward()
        return error(gradient(model, data), exact), error({name: t.grad for name, t in p.items()}, exact)

    compare(name, measure, np.max)


@pytest.mark.parametrize("name", MODELS)
def test_200_steps_in_float32_stay_as_near_to_float64_as_pytorchs(name):
    """By Adam on one batch, from the same weights; eps is so large that a gradient of nothing moves nothing, since in
    whose rounding such a parameter then goes up or down would be chance."""
    def measure(model, data, loss, tensors):
        wide, p = model.astype("float64"), tensors_of(model)
        for one in (wide, model):
            trainer_of(one).fit(*data, steps=200, batch_size=len(data[0]))
        optimizer = torch.optim.Adam(p.values(), **ADAM)
        for _ in range(200):
            optimizer.zero_grad()
            loss(p, tensors).backward()
            optimizer.step()
        return error(model.params, wide.params), error({name: t.detach() for name, t in p.items()}, wide.params)

    compare(name, measure, np.median)
