"""The command line, run as a user runs it."""

import json
import os
import re
import subprocess
import sys

import pytest

import fastloop as fl
from fastloop.train import ALL_FLAGS, make_schedule, parse

COMMAND = [sys.executable, "-m", "fastloop.train"]


def run(*arguments, **options):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


def test_the_default_run_prints_what_it_did(tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "documents   5,163: 4,647 to train on, 516 held out (seed 42)"
    for start in ("cut         795 of 5,163 documents, to 8", "vocabulary  27", "parameters  992", "baseline    2.385"):
        assert any(line.startswith(start) for line in lines), start
    steps = [line for line in lines if line.startswith("step")]
    numbers = [int(re.search(r"([\d,]+)/1,000", line)[1].replace(",", "")) for line in steps]
    assert numbers == [1, *range(100, 1001, 100)]
    assert all(re.search(r"loss \d\.\d{4}  lr 0\.\d{6}  norm \d\.\d{3}  [\d,]+ tokens/s$", line) for line in steps)
    first, last = (float(re.search(r"loss (\S+)", line)[1]) for line in (steps[0], steps[-1]))
    assert 3.2 < first < 3.4
    assert 2.1 < last < 2.5
    train, validation = re.search(r"^loss +train (\S+), validation (\S+) nats", done.stdout, re.M).groups()
    assert 2.2 < float(train) < 2.5
    assert 2.2 < float(validation) < 2.5
    assert sum(line.startswith("sample") for line in lines) == 10
    assert "\r" not in done.stdout
    assert "\x1b" not in done.stdout


def test_the_run_is_the_trainers_own(tmp_path):
    docs = fl.load_docs()
    train, val = fl.split_docs(docs, 0.1, 42)
    tok = fl.CharTokenizer(docs)
    trainer = fl.Trainer(
        fl.BigramLM(tok.vocab_size), fl.Adam(lr=0.01, betas=(0.85, 0.99)), tokenizer=tok, schedule=fl.schedules.linear()
    )
    trainer.fit(train, steps=300)
    done = run("--steps", 300, "--quiet", "--sample", 3, cwd=tmp_path)
    losses = f"train {trainer.evaluate(train):.4f}, validation {trainer.evaluate(val):.4f}"
    expected = [f"loss        {losses} nats per token"]
    expected += [f"sample      {name}" for name in trainer.model.generate(tok, 3, 0.8, 42)]
    assert done.stdout.splitlines() == expected


def test_help_names_every_flag_in_groups():
    done = run("--help")
    assert done.returncode == 0
    for word in ("data:", "model:", "training:", "output:", "examples:", "exit status:", *ALL_FLAGS):
        assert word in done.stdout, word


BAD = [
    (["--steps", "0"], "--steps: 0 is not a number of at least 1"),
    (["--steps", "-5"], "--steps: -5"),
    (["--steps", "many"], "--steps: invalid whole number value: 'many'"),
    (["--setps", "1"], "--setps is not a flag; did you mean --steps?"),
    (["--learning-rate=0.1"], "--learning-rate is not a flag; did you mean --lr?"),
    (["--xyzzy", "1"], "--xyzzy is not a flag (--help lists the flags)"),
    (["--steps", "5", "--epochs", "1"], "say one of them"),
    (["--prompt", "Anna"], "--prompt: text[0] = 'A' is not one of"),
    (["--prompt", "annaanna"], "leaves nothing"),
    (["--top-p", "2"], "top_p = 2"),
    (["--save", "no/run.npz"], "--save no/run.npz: there is no folder"),
    (["--export", "no/run.safetensors"], "--export no/run.safetensors: there is no folder"),
    (["--plot", "no/run.png"], "--plot no/run.png: there is no folder"),
    (["--save", "."], "--save .: cannot be written"),
    (["--optimizer", "adamw", "--no-decay", "wpe,lm_hed"], "'lm_hed' is not one of wte, wpe, lm_head"),
    (["--schedule", "one_cycle", "--lr-end", "0.1"], "--lr-end does not go with --schedule one_cycle"),
    (["--format", "text"], "needs a file"),
    (["--format", "text", "--data", "x", "--epochs", "1"], "no --epochs; say --steps"),
    (["--batch-size", "0"], "--batch-size: 0"),
    (["--n-embd", "0"], "--n-embd: 0"),
    (["--n-embd", "10000000000000"], ""),
    (["--block-size", "-1"], "--block-size: -1"),
    (["--resume="], "argument --resume: expected one argument"),
    (["--lr", "nan"], "lr = nan"),
    (["--lr", "-1"], "lr = -1"),
    (["--beta1", "1"], "betas[0] = 1.0"),
    (["--beta2", "-0.1"], "betas[1] = -0.1"),
    (["--eps", "0"], "eps = 0"),
    (["--seed", "-1"], "--seed: -1"),
    (["--threads", "0"], "--threads: 0"),
    (["--val-fraction", "1"], "--val-fraction: 1 is outside [0, 1)"),
    (["--val-fraction", "nan"], "--val-fraction: nan is outside"),
    (["--sample", "-1"], "--sample: -1"),
    (["--temperature", "-1"], "--temperature: -1"),
    (["--log-every", "-1"], "--log-every: -1"),
    (["--clip-norm", "0"], "clip_norm = 0"),
    (["--data", "missing.txt"], "missing.txt: No such file"),
    (["--data", "."], "Is a directory"),
    (["--encoding", "klingon"], "klingon"),
    (["extra"], "extra"),
]


@pytest.mark.parametrize("arguments, message", BAD)
def test_a_bad_argument_is_one_line_and_status_2(arguments, message, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("fastloop-train: error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


FILES = {
    "empty": (b"", "is empty"),
    "blank": (b"\n \n\r\n", "only blank lines"),
    "nul": (b"anna\nbe\0n\n", "line 2, column 3"),
    "latin-1": (b"anna\nren\xe9\n", "line 2, byte offset 8"),
    "utf-16": ("anna\n".encode("utf-16"), "it begins as UTF-16 does"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_line_with_the_place_and_status_2(name, tmp_path):
    content, message = FILES[name]
    (tmp_path / "data.txt").write_bytes(content)
    done = run("--data", "data.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("fastloop-train: error: data.txt")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    "content, parameters",
    [
        (b"a\n", (2 + 8 + 2) * 16),
        (b"\xef\xbb\xbfab\r\nba\r\n", (3 + 8 + 3) * 16),
        ("é\nñ".encode(), (3 + 8 + 3) * 16),
        (b"ab\n" + b"a" * 100_000 + b"\n", (3 + 8 + 3) * 16),
    ],
)
def test_an_odd_file_is_read_as_a_person_would(content, parameters, tmp_path):
    (tmp_path / "data.txt").write_bytes(content)
    done = run("--data", "data.txt", "--steps", 5, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"parameters  {parameters:,}\n" in done.stdout


def test_a_closed_pipe_is_quiet(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "--steps", "20000", "--log-every", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_divergence_is_one_line_and_status_1(tmp_path):
    done = run("--lr", "1e200", "--steps", 50, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("fastloop-train: error: step ")
    assert done.stderr.count("\n") == 1


def test_a_configuration_file_says_what_flags_say(tmp_path):
    lines = ["steps = 30", "n-embd = 8", "batch_size = 2", "shuffle = true", "quiet = true", "sample = 2"]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    by_file = run("--config", "run.toml", cwd=tmp_path)
    flags = ["--steps", 30, "--n-embd", 8, "--batch-size", 2, "--shuffle", "--quiet", "--sample", 2]
    assert by_file.returncode == 0, by_file.stderr
    assert by_file.stdout == run(*flags, cwd=tmp_path).stdout
    assert "30/30" in run("--config", "run.toml", "--no-quiet", cwd=tmp_path).stdout    # the command line comes last


@pytest.mark.parametrize(
    "text, message",
    [
        ("stepz = 3", "run.toml: 'stepz' is not a flag of this command; did you mean steps?"),
        ("learnig_rate = 3", "run.toml: 'learnig_rate' is not a flag of this command; did you mean lr?"),
        ("steps = 'x'", "run.toml: argument --steps: invalid whole number value: 'x'"),
        ("steps = 0", "run.toml: argument --steps: 0"),
        ("steps = 5\nepochs = 1", "run.toml: steps and epochs: say one of them"),
        ("steps = [1]", "steps = [1] is not what --steps takes"),
        ("shuffle = 1", "shuffle = 1 is not what --shuffle takes"),
        ("steps = ", "run.toml: "),
    ],
)
def test_a_bad_configuration_is_one_line_and_status_2(text, message, tmp_path):
    (tmp_path / "run.toml").write_text(text)
    done = run("--config", "run.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_run_resumed_from_its_checkpoint_ends_like_one_without_a_break(tmp_path):
    flags = ["--steps", 400, "--batch-size", 2, "--shuffle", "--lr", 0.02, "--quiet", "--sample", 3]
    whole = run(*flags, "--save", "whole.npz", "--save-every", 150, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    code = (
        "import sys, fastloop as fl, fastloop.train as t\n"
        "class Stop:\n    def on_step(self, trainer):\n        if trainer.steps == 150: raise KeyboardInterrupt\n"
        "old = t.make_callbacks\n"
        "t.make_callbacks = lambda *a: [*old(*a), Stop()]\n"
        "sys.exit(t.main(sys.argv[1:]))\n"
    )
    arguments = [sys.executable, "-c", code, *map(str, flags), "--save", "cut.npz", "--save-every", "50"]
    assert subprocess.run(arguments, cwd=tmp_path, timeout=60).returncode == 130
    assert fl.Trainer.load(tmp_path / "cut.npz").steps == 100
    resumed = run("--resume", "cut.npz", "--save", "cut.npz", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout
    aloud = run("--resume", "cut.npz", "--no-quiet", "--sample", 0, cwd=tmp_path).stdout
    assert "\nresumed     cut.npz, after step 400 of 400\n" in aloud        # and nothing is left to do
    assert re.search(r"^arguments   --steps 400 --batch-size 2 --shuffle --lr 0.02 ", aloud, re.M)
    assert re.search(r"^time +\d\.\d+ s$", aloud, re.M)
    one, other = (fl.Trainer.load(tmp_path / f"{name}.npz").model.params.flat for name in ("whole", "cut"))
    assert (one == other).all()
    (tmp_path / "copy.npz").write_bytes((tmp_path / "cut.npz").read_bytes())
    (tmp_path / "cut.npz").unlink()
    other = run("--resume", "copy.npz", cwd=tmp_path)       # a checkpoint does not choose other files to write
    assert "not writing to cut.npz again; say --save cut.npz" in other.stderr
    assert not (tmp_path / "cut.npz").exists()
    (tmp_path / "copy.npz").rename(tmp_path / "cut.npz")
    refused = run("--resume", "cut.npz", "--lr", 1, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--lr: a resumed run keeps its own" in refused.stderr


def test_a_dry_run_takes_one_step_and_writes_nothing(tmp_path):
    done = run("--dry-run", "--save", "run.npz", "--model", "gpt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "layer0.mlp_fc1 64 x 16" in done.stdout
    assert re.search(r"^step +loss 3\.\d+, norm", done.stdout, re.M)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_a_configuration_that_gives_the_same_run(tmp_path):
    flags = ["--model", "gpt", "--batch-size", 3, "--schedule", "cosine", "--prompt", "an", "--shuffle", "--steps", 20]
    (tmp_path / "run.toml").write_text(run("--dry-run", *flags, cwd=tmp_path).stdout.partition("\n\n")[2])
    by_flags, by_file = run(*flags, "--quiet", cwd=tmp_path), run("--config", "run.toml", "--quiet", cwd=tmp_path)
    assert by_file.stdout == by_flags.stdout != ""


@pytest.mark.parametrize("optimizer, memory", [
    ("adam", 4), ("sgd", 2), ("sgd --momentum 0.9", 3),
])
def test_a_dry_run_counts_the_memory(optimizer, memory, tmp_path):
    done = run("--dry-run", "--n-embd", 2048, "--optimizer", *optimizer.split(), cwd=tmp_path)
    assert f"memory      {memory * 8 * 2048 * (27 + 8 + 27) / 2**20:.2f} MiB" in done.stdout, done.stderr


def test_the_command_line_overrules_the_files_length(tmp_path):
    (tmp_path / "run.toml").write_text("epochs = 1")
    assert "20/20" in run("--config", "run.toml", "--steps", 20, cwd=tmp_path).stdout
    (tmp_path / "run.toml").write_text("steps = 20")
    assert "/4,647" in run("--config", "run.toml", "--epochs", 1, cwd=tmp_path).stdout


def test_a_learning_rate_is_looked_for(tmp_path):
    done = run("--lr-find", "--batch-size", 32, "--save", "run.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^lr +\d\.\de[-+]\d\d  loss \d\.\d{4}", done.stdout, re.M)) == 11
    docs = fl.load_docs()
    train, _ = fl.split_docs(docs, 0.1, 42)
    tok = fl.CharTokenizer(docs)
    trainer = fl.Trainer(fl.BigramLM(tok.vocab_size), fl.Adam(lr=0.01, betas=(0.85, 0.99)), tokenizer=tok)
    found = fl.lr_find(trainer, train, batch_size=32)
    assert f"suggestion  --lr {found.suggestion:.2g} (finished after 100 steps)" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_ones_own_is_shuffled(tmp_path):
    """Sorted, as such files are, its first thousand lines are not what the rest is like."""
    (tmp_path / "names.txt").write_text("\n".join(sorted(fl.load_docs())))
    flags = ["--data", "names.txt", "--quiet", "--sample", 0]

    def losses(*flags):
        return float(re.search("validation (\\S+)", run(*flags, cwd=tmp_path).stdout)[1])

    assert losses(*flags) < 2.4 < losses(*flags, "--no-shuffle") - 0.1


def test_a_diverged_run_is_diagnosed_and_logged(tmp_path):
    done = run("--lr", "1e200", "--steps", 50, "--diagnose", "--log", "run.jsonl", cwd=tmp_path)
    assert done.returncode == 1
    assert "diagnosis   diverging: " in done.stdout
    last = (tmp_path / "run.jsonl").read_text().splitlines()[-1]
    assert '"event": "end"' in last
    assert '"stop_reason": "diverged"' in last


def test_a_run_whose_last_step_led_too_far_ends_with_1(tmp_path):
    done = run("--steps", 2, "--lr-end", 1e308, "--diagnose", "--sample", 3, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the loss is no longer finite" in done.stderr
    assert "train nan" in done.stdout
    assert "\ndiagnosis" in done.stdout
    assert "sample" not in done.stdout.split("loss        train")[1]


def test_what_stopped_a_run_and_what_was_best_is_said(tmp_path):
    flags = ["--patience", 3, "--eval-every", 50, "--restore-best", "--steps", 5000, "--lr", 0.05]
    done = run(*flags, "--log-every", 1000, cwd=tmp_path)
    stopped = int(re.search(r"^stopped     patience, after step ([\d,]+)$", done.stdout, re.M)[1].replace(",", ""))
    loss, step = re.search(r"^best        validation (\S+) after step ([\d,]+), restored$", done.stdout, re.M).groups()
    assert int(step) == stopped - 150
    assert f", validation {loss} nats" in done.stdout
    assert re.search(rf"^step +{stopped}/5,000", done.stdout, re.M)      # the last step has its line


def test_a_saved_run_has_its_best_beside_it(tmp_path):
    done = run("--steps", 300, "--lr", 0.3, "--save", "run.npz", "--quiet", "--sample", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last, best = (fl.Trainer.load(tmp_path / name) for name in ("run.npz", "run.best.npz"))
    assert len(last.history.evaluations) == 10
    assert best.steps == min(last.history.evaluations, key=lambda e: e[1])[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_the_log_goes_into_a_pipe_too(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    command = [*COMMAND, "--steps", "30", "--log-every", "10", "--quiet", "--log", "pipe"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
    with open(tmp_path / "pipe") as pipe:
        events = [json.loads(line)["event"] for line in pipe]
    assert process.wait(timeout=60) == 0
    assert [e for e in events if e != "evaluate"] == ["start", "log", "log", "log", "log", "end"]


def test_plot_without_matplotlib_is_refused_before_the_run(tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None; from fastloop.train import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--plot", "x.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'fastloop[plot]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_plot_of_an_unknown_kind_is_refused_before_the_run(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plot: pip install 'fastloop[plot]'")
    done = run("--plot", "x.foo", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be drawn as 'foo'; known are" in done.stderr


def test_one_batch_is_learnt_by_heart(tmp_path):
    arguments = ["--overfit-one-batch", "--model", "gpt", "--batch-size", 4, "--n-embd", 32, "--steps", 400, "--quiet"]
    done = run(*arguments, cwd=tmp_path)
    assert float(re.search(r"loss +train (\S+)", done.stdout)[1]) < 0.6       # the first letters stay a guess


def test_ctrl_c_saves_and_exits_with_130(tmp_path):
    import signal
    import time

    process = subprocess.Popen(
        [*COMMAND, "--steps", "100000000", "--save", "run.npz", "--log-every", "1000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True,
    )
    while not re.match("step +1,000/", process.stdout.readline()) and process.poll() is None:
        pass
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == ""
    assert "stopped     interrupted, after step" in out
    assert fl.Trainer.load(tmp_path / "run.npz").history.interrupted
    assert time.monotonic() - sent < 10


def test_a_text_is_trained_on_in_windows(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be that is the question\n" * 50)
    arguments = ["--data", "text.txt", "--format", "text", "--model", "gpt", "--steps", 200, "--batch-size", 8]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "characters  2,000: 1,800 to train on, 200 held out" in done.stdout
    assert float(re.search(r"loss +train (\S+),", done.stdout)[1]) < 1.0
    samples = re.split("^sample      ", done.stdout, flags=re.M)[1:]
    assert len(samples) == 10
    for sample in samples:
        assert len(sample.removesuffix("\n").replace("\n            ", "\n")) == 200
    done = run(*arguments, "--overfit-one-batch", "--length", 5, "--sample", 1, cwd=tmp_path)
    assert "characters  17: all to train on" in done.stdout
    assert float(re.search(r"loss +train (\S+) ", done.stdout)[1]) < 0.01
    assert re.search("^sample      .{5}$", done.stdout, re.M)
    done = run(*arguments[:-2], "--val-fraction", 0.005, cwd=tmp_path)
    assert done.returncode == 2
    assert "the 10 characters held out hold no window of 16 predictions" in done.stderr


@pytest.mark.parametrize("flags", [
    ["--optimizer", "adamw", "--weight-decay", 0.1, "--no-decay", "wpe,wte"],
    ["--optimizer", "sgd", "--momentum", 0.9, "--nesterov", "--lr", 0.1],
    ["--schedule", "step_decay", "--decay-steps", 50], ["--schedule", "inverse_sqrt", "--warmup", 20],
    ["--schedule", "warmup_stable_decay", "--decay-steps", 50, "--lr-end", 0.1],
    ["--optimizer", "sgd", "--momentum", 0.9, "--lr", 0.1],
    ["--schedule", "cosine", "--warmup", 10], ["--schedule", "warmup_stable_decay", "--warmup", 5], ["--epochs", 1],
    ["--grad-accum", 4, "--clip-norm", 1], ["--eval-every", 50, "--patience", 2, "--restore-best"],
    ["--sample-every", 100, "--top-k", 5, "--top-p", 0.9, "--prompt", "an"],
])
def test_flags_that_train_otherwise(flags, tmp_path):
    done = run("--steps", 200, *flags, cwd=tmp_path) if "--epochs" not in flags else run(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "arguments" in done.stdout


@pytest.mark.parametrize("flags, expected", [
    ([], fl.schedules.linear(1000)),
    (["--schedule", "cosine", "--lr-end", 0.1, "--warmup", 50],
     fl.schedules.warmup(50, fl.schedules.cosine(950, end=0.1))),
    (["--schedule", "step_decay", "--steps", 500], fl.schedules.step_decay(100)),
    (["--schedule", "inverse_sqrt", "--decay-steps", 30], fl.schedules.inverse_sqrt(30)),
    (["--schedule", "warmup_stable_decay", "--warmup", 7, "--steps", 100],
     fl.schedules.warmup_stable_decay(7, 20, 100)),
], ids=str)
def test_the_schedule_is_the_one_asked_for(flags, expected):
    args, _ = parse([*map(str, flags)])
    schedule = make_schedule(args, args.steps)
    schedule = schedule.for_steps(args.steps) if hasattr(schedule, "for_steps") else schedule
    assert [schedule(step) for step in range(args.steps)] == [expected(step) for step in range(args.steps)]


@pytest.mark.parametrize("optimizer, decay", [("adam", 0.0), ("adamw", 0.01), ("sgd", 0.0)])
def test_weight_decay_has_torchs_default(optimizer, decay, tmp_path):
    done = run("--dry-run", "--optimizer", optimizer, cwd=tmp_path)
    assert f"weight_decay={decay}" in done.stdout
