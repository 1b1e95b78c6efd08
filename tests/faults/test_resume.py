"""A run that is cut off after any step and resumed in a fresh process is bitwise identical to an uninterrupted one."""

import cases
import pytest


class SaveEach:
    """A checkpoint after every step, as a run killed there would have left."""

    def __init__(self, folder):
        self.folder = folder

    def on_step(self, trainer):
        if trainer.steps < cases.STEPS:
            trainer.save(self.folder / f"{trainer.steps}.npz")


# How the examples are taken: in order and with accumulation, shuffled, by epochs that end with a short batch.
WAYS = [
    ("given", {"grad_accum": 2, "clip_norm": 0.5}, {"steps": cases.STEPS, "batch_size": 2}),
    ("shuffled", {"clip_value": 0.05}, {"steps": cases.STEPS, "batch_size": 4, "shuffle": True, "seed": 3}),
    ("epochs", {"grad_accum": 3}, {"epochs": 4, "batch_size": 2, "shuffle": True}),     # of 5 steps, 4 examples each
]


@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS)
@pytest.mark.parametrize("model", cases.MODELS)
def test_resumed_after_every_step(model, optimizer, tmp_path):
    if model in cases.FLOAT32 and optimizer in ("sgd", "adamw") and not cases.NIGHTLY:
        pytest.skip("in float32 only with moments, but in a night with all")
    everything, validation = cases.data(model)
    ways = WAYS if cases.NIGHTLY else WAYS[sum(map(ord, model + optimizer)) % 3 :][:1]
    for name, options, length in ways:
        if model.endswith("text"):
            length = {"steps": cases.STEPS, "batch_size": length["batch_size"], "seed": length.get("seed", 0)}
        length |= {"validation": validation, "eval_every": 3, "restore_best": True}
        folder = tmp_path / name
        folder.mkdir()
        whole, saving = (cases.make(model, optimizer, **options) for _ in range(2))
        whole.fit(*everything, **length)
        saving.fit(*everything, callbacks=[SaveEach(folder)], **length)
        assert whole.steps == cases.STEPS
        assert cases.state(saving) == cases.state(whole)
        done = cases.python(cases.__file__, "resume", folder, model, optimizer)
        assert done.returncode == 0, done.stderr
        ends = dict(line.split() for line in done.stdout.splitlines())
        assert ends == {str(k): cases.state(whole) for k in range(1, cases.STEPS)}
