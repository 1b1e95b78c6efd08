"""The command line, run as a user runs it."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys

import pytest

import fastloop as fl
from fastloop import checkpoint, train
from fastloop.flags import ALL_FLAGS, COURSE, MODELS, OPTIMIZERS, default_of, key, parse
from fastloop.train import make_schedule, sample_of

COMMAND = [sys.executable, "-m", "fastloop.train"]
LOSSES = r"^loss +train (\S+) \(on 516 of 4,647 documents\), validation (\S+) nats"


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
    assert all(re.search(r"mean loss \d\.\d{4}  lr 0\.\d{6}  norm \d\.\d{3}  [\d,]+ tokens/s$", line) for line in steps)
    first, last = (float(re.search(r"loss (\S+)", line)[1]) for line in (steps[0], steps[-1]))
    assert 3.2 < first < 3.4
    assert 2.1 < last < 2.5
    train, validation = re.search(LOSSES, done.stdout, re.M).groups()
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
    (some,) = sample_of(train, 516, 8, 42)
    losses = f"train {trainer.evaluate(some):.4f} (on 516 of 4,647 documents), validation {trainer.evaluate(val):.4f}"
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
    (["--momentum-smoothing", "0.9"], "--momentum-smoothing is not a flag; did you mean --beta1?"),
    (["--squared-gradient-smoothing", "0.9"], "is not a flag; did you mean --beta2?"),
    (["--num-layers", "2"], "did you mean --n-layer?"),
    (["--context-length", "8"], "did you mean --block-size?"),
    (["--max-new-tokens", "8"], "did you mean --length?"),
    (["--save-every", "10"], "--save-every needs a file: --save FILE"),
    (["--steps", "5", "--epochs", "1"], "give only one of them"),
    (["--prompt", "Anna"], "--prompt: text[0] = 'A' is not one of"),
    (["--prompt", "annaanna"], "leaves no room in block_size = "),
    (["--top-p", "2"], "top_p = 2"),
    (["--save", "no/run.npz"], "--save no/run.npz: there is no folder"),
    (["--export", "no/run.safetensors"], "--export no/run.safetensors: there is no folder"),
    (["--plot", "no/run.png"], "--plot no/run.png: there is no folder"),
    (["--save", "."], "--save .: cannot be written"),
    (["--optimizer", "adamw", "--no-decay", "wpe,lm_hed"], "'lm_hed' is not one of wte, wpe, lm_head"),
    (["--schedule", "one_cycle", "--lr-end", "0.1"], "--lr-end does not go with --schedule one_cycle"),
    (["--format", "text"], "needs a file"),
    (["--format", "text", "--data", "x", "--epochs", "1"], "no --epochs; use --steps"),
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
        ("steps = 5\nepochs = 1", "run.toml: steps and epochs: give only one of them"),
        ("steps = [1]", "steps = [1] is not what --steps takes"),
        ("shuffle = 1", "shuffle = 1 is not what --shuffle takes"),
        ("steps = ", "run.toml: "),
        ("n_embd = 8\nn-embd = 4", "run.toml: 'n_embd' and 'n-embd' are the same flag: give only one of them"),
        ("config = 'x.toml'", "run.toml: 'config' cannot stand in a file"),
        ("data = ''", "run.toml: argument --data: expected one argument"),
        ('data = "a\\u0000b"', "run.toml: argument --data: 'a\\x00b' holds a NUL character, which no file's name does"),
        ("momentum = 0.9", "run.toml: --momentum does not go with --optimizer adam; it is for sgd"),
        ("optimizer = 'sgd'\nbeta1 = 0.9",
         "run.toml: --beta1 does not go with --optimizer sgd; it is for adam, adamw"),
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
    assert "not writing to cut.npz again; use --save cut.npz" in other.stderr
    assert not (tmp_path / "cut.npz").exists()
    (tmp_path / "copy.npz").rename(tmp_path / "cut.npz")
    refused = run("--resume", "cut.npz", "--lr", 1, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--lr: a resumed run keeps its own" in refused.stderr


def test_a_dry_run_takes_one_step_and_writes_nothing(tmp_path):
    done = run("--dry-run", "--save", "run.npz", "--model", "gpt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "layer0.mlp_fc1 64 x 16" in done.stdout
    assert re.search(r"^# step +loss 3\.\d+, norm", done.stdout, re.M)
    assert list(tmp_path.iterdir()) == []


def test_what_a_dry_run_prints_is_a_configuration_of_the_same_run(tmp_path):
    flags = ["--model", "gpt", "--batch-size", 3, "--schedule", "cosine", "--prompt", "an", "--shuffle", "--steps", 20]
    (tmp_path / "run.toml").write_text(run("--dry-run", *flags, cwd=tmp_path).stdout)
    by_flags, by_file = run(*flags, "--quiet", cwd=tmp_path), run("--config", "run.toml", "--quiet", cwd=tmp_path)
    assert by_file.stdout == by_flags.stdout != ""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="--config needs Python 3.11")
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("quiet", [[], ["--quiet"]], ids=str)
def test_a_dry_run_into_a_file_reads_back_to_the_same_arguments(quiet, encoding, tmp_path):
    (tmp_path / "d\u00e9 \"x\\.txt").write_text("a'\u00e9\"\\b\t#\U0001f600=\x7fc\n" * 20, encoding="utf-8")
    flags = [
        "--data", "d\u00e9 \"x\\.txt", "--prompt", "a'\u00e9\"\\b\t#\U0001f600=\x7f", "--block-size", "32",
        "--lr", "1e-5", "--no-shuffle", "--epochs", "2", "--no-decay", "wte,wpe", "--save", "run\n.npz",
        "--eps", "1e-20", *quiet,
    ]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([*COMMAND, "--dry-run", *flags], capture_output=True, cwd=tmp_path, env=env)
    (tmp_path / "c.toml").write_bytes(done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    by_flags, by_file = parse(flags)[0], parse(["--config", str(tmp_path / "c.toml")])[0]
    assert {**vars(by_file), "config": None} == vars(by_flags)


@pytest.mark.parametrize("optimizer, memory", [
    ("adam", 4), ("sgd", 2), ("sgd --momentum 0.9", 3),
])
def test_a_dry_run_counts_the_memory(optimizer, memory, tmp_path):
    done = run("--dry-run", "--n-embd", 2048, "--optimizer", *optimizer.split(), cwd=tmp_path)
    assert f"memory      {memory * 8 * 2048 * (27 + 8 + 27) / 2**20:.2f} MiB" in done.stdout, done.stderr


@pytest.mark.parametrize("flags", [
    ("--steps=50", "--warmup=3"), ("--epochs=1", "--warmup=9"),
    ("--steps=50", "--warmup=3", "--schedule=warmup_stable_decay"),
])
def test_the_step_of_a_dry_run_is_the_first_of_the_whole_run(flags, capsys):
    assert train.main(["--dry-run", *flags]) == 0, capsys.readouterr().err
    assert train.main(["--dry-run", *flags, "--warmup=5000"]) == 2      # as without --dry-run
    assert "5000" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_reported_with_the_name_of_the_file(capsys):
    assert train.main(["--steps=3", "--log=/dev/full"]) == 2
    assert capsys.readouterr().err == "fastloop-train: error: /dev/full: No space left on device\n"


def test_the_command_line_overrules_the_files_length(tmp_path):
    (tmp_path / "run.toml").write_text("epochs = 1")
    assert "20/20" in run("--config", "run.toml", "--steps", 20, cwd=tmp_path).stdout
    (tmp_path / "run.toml").write_text("steps = 20")
    assert "/4,647" in run("--config", "run.toml", "--epochs", 1, cwd=tmp_path).stdout


def test_lr_find_suggests_a_learning_rate(tmp_path):
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


def test_what_stopped_a_run_and_what_was_best_is_printed(tmp_path):
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
    # Not waiting for a writer, who may never come; the pipe holds all that is written.
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)) as pipe:
        done = run("--steps", 30, "--log-every", 10, "--quiet", "--log", "pipe", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        events = [json.loads(line)["event"] for line in pipe]
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


def test_overfitting_one_batch_brings_its_loss_down(tmp_path):
    arguments = ["--overfit-one-batch", "--model", "gpt", "--batch-size", 4, "--n-embd", 32, "--steps", 400, "--quiet"]
    done = run(*arguments, cwd=tmp_path)
    assert float(re.search(r"loss +train (\S+)", done.stdout)[1]) < 0.6       # first letters remain a guess


def test_ctrl_c_saves_and_exits_with_130(tmp_path):
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
    assert float(re.search(r"loss +train (\S+) \(on 200 of 1,800 characters\),", done.stdout)[1]) < 1.0
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
def test_flags_that_change_the_training(flags, tmp_path):
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


# --- Flags and what uses them

USED = [
    (["--n-layer", "2"], ["--model", "bigram"], "gpt"),
    (["--n-head", "4"], ["--model", "bigram"], "gpt"),
    (["--momentum", "0.9"], ["--optimizer", "adam"], "sgd"),
    (["--momentum", "0"], ["--optimizer", "adamw"], "sgd"),
    (["--nesterov"], ["--optimizer", "adam"], "sgd"),
    (["--no-nesterov"], ["--optimizer", "adam"], "sgd"),
    (["--beta1", "0.9"], ["--optimizer", "sgd"], "adam, adamw"),
    (["--beta2", "0.9"], ["--optimizer", "sgd"], "adam, adamw"),
    (["--eps", "1e-6"], ["--optimizer", "sgd"], "adam, adamw"),
    *((["--decay-steps", "5"], ["--schedule", name], "warmup_stable_decay, step_decay, inverse_sqrt")
      for name in ("constant", "linear", "cosine", "exponential", "one_cycle")),
    *((["--lr-end", "0.1"], ["--schedule", name], "linear, cosine, exponential, warmup_stable_decay")
      for name in ("constant", "one_cycle", "inverse_sqrt", "step_decay")),
    (["--length", "20"], ["--format", "lines"], "text"),
    (["--shuffle"], ["--format", "text", "--data", "x"], "lines"),
]


@pytest.mark.parametrize("flags, choice, users", USED, ids=str)
def test_a_flag_that_nothing_chosen_uses_is_refused_with_both_names(flags, choice, users, capsys):
    with pytest.raises(SystemExit) as error:
        parse([*choice, *flags])
    assert error.value.code == 2
    said = f"{flags[0].replace('--no-', '--')} does not go with {choice[0]} {choice[1]}; it is for {users}"
    assert capsys.readouterr().err == f"fastloop-train: error: {said} (--help lists the flags)\n"


def test_what_uses_a_flag_is_what_the_api_says():
    for flag in ALL_FLAGS.values():
        for choice, users in flag.used_by.items():
            assert set(users) < set(ALL_FLAGS[choice].kind)
    for made, choice in ((MODELS, "model"), (OPTIMIZERS, "optimizer")):
        arguments = {name: set(inspect.signature(make).parameters) for name, make in made.items()}
        for name, flag in ALL_FLAGS.items():
            argument = "betas" if name in ("beta1", "beta2") else key(name)
            taking = {chosen for chosen in made if argument in arguments[chosen]}
            if taking:
                assert set(flag.used_by.get(choice, made)) == taking, name


def test_the_defaults_are_the_apis_but_for_those_that_are_listed():
    betas = default_of(fl.Adam, "betas")
    apis = {"lr": default_of(fl.Adam, "lr"), "beta1": betas[0], "beta2": betas[1],
            "temperature": default_of(fl.GPT.generate, "temperature"), "seed": default_of(fl.Trainer.fit, "seed")}
    for name, value in COURSE.items():
        assert ALL_FLAGS[name].default == value
        assert apis.get(name) != value, name        # or it need not be listed
    # A list of tensors is typed as text, and fit's None is 100 steps.
    exempt = {*COURSE, "model", "optimizer", "no-decay", "log-every"}
    for make in (*MODELS.values(), *OPTIMIZERS.values(), fl.Trainer, fl.Trainer.fit):
        for name, flag in ALL_FLAGS.items():
            argument = inspect.signature(make).parameters.get(key(name))
            if argument and flag.default is not None and name not in exempt:    # None: the API's own is taken
                assert flag.default == argument.default, name


@pytest.mark.skipif(sys.version_info < (3, 11), reason="--config needs Python 3.11")
def test_a_file_may_hold_what_the_run_does_not_use_with_its_default(tmp_path, capsys):
    """So what --dry-run wrote is read back, and another optimizer or model can be said beside it."""
    assert train.main(["--dry-run"]) == 0
    (tmp_path / "c.toml").write_text(capsys.readouterr().out)
    config = f"--config={tmp_path / 'c.toml'}"
    for choice in (["--optimizer=sgd", "--momentum=0.9"], ["--model=gpt", "--n-layer=2"], ["--schedule=constant"]):
        assert vars(parse([config, *choice])[0]) == {**vars(parse(choice)[0]), "config": str(tmp_path / "c.toml")}
    (tmp_path / "c.toml").write_text("momentum = 0\nn-layer = 2\n")
    with pytest.raises(SystemExit):
        parse([config])
    assert "c.toml: --n-layer does not go with --model bigram; it is for gpt" in capsys.readouterr().err
    assert parse([config, "--model=gpt"])[0].n_layer == 2


def test_a_resumed_run_is_asked_for_no_flag_that_it_does_not_use(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--optimizer=sgd", "--momentum=0.9", "--steps=3", "--sample=0", "--save=run.npz"]
    assert train.main(flags) == 0
    assert train.main(["--resume=run.npz"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train.main(["--resume=run.npz", "--length=5"])
    assert "error: --length does not go with --format lines; it is for text" in capsys.readouterr().err
    rename("run.npz", "other.npz", {"beta1": 0.5})
    with pytest.raises(SystemExit):
        train.main(["--resume=other.npz"])
    assert "other.npz: --beta1 does not go with --optimizer sgd; it is for adam, adamw" in capsys.readouterr().err


@pytest.mark.skipif(sys.version_info < (3, 11), reason="--config needs Python 3.11")
def test_a_configuration_may_begin_with_a_byte_order_mark(tmp_path, capsys):
    (tmp_path / "c.toml").write_text("steps = 7\r\nprompt = 'é'\r\n", encoding="utf-8-sig")
    args, _ = parse([f"--config={tmp_path / 'c.toml'}"])
    assert (args.steps, args.prompt) == (7, "é")
    (tmp_path / "c.toml").write_text("steps = 7", encoding="utf-16")
    assert train.main([f"--config={tmp_path / 'c.toml'}"]) == 2
    assert "it begins as UTF-16 does, and TOML is UTF-8" in capsys.readouterr().err


def test_a_picture_without_an_extension_gets_one_and_says_so(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.chdir(tmp_path)
    assert train.main(["--steps=3", "--plot=x"]) == 0
    assert "\npicture     x.png, since --plot x has no file extension\n" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert train.main(["--steps=3", "--plot=x.png"]) == 0
    assert "picture" not in capsys.readouterr().out


# --- Files that would overwrite each other

@pytest.fixture
def files(tmp_path):
    """A folder with data under several names, and a checkpoint."""
    (tmp_path / "names.txt").write_text("anna\nbe\nada\n" * 10)
    (tmp_path / "link").symlink_to("names.txt")
    os.link(tmp_path / "names.txt", tmp_path / "hard")
    (tmp_path / "best.npz").mkdir()
    (tmp_path / "x.best.txt").write_bytes((tmp_path / "names.txt").read_bytes())
    (tmp_path / "c.toml").write_text("steps = 5\n")
    (tmp_path / "lost").symlink_to("new.npz")
    (tmp_path / "protected").write_text("mine")
    (tmp_path / "run.best.npz").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    done = run("--steps", 5, "--save", "done.npz", "--data", "names.txt", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


SAME = [
    (["--data", "names.txt", "--save", "names.txt"], "--data and --save are the same file: names.txt"),
    (["--data", "names.txt", "--save", "link"], "--data and --save are the same file: link"),
    (["--data", "link", "--export", "names.txt"], "--data and --export are the same file"),
    (["--data", "hard", "--log", "./names.txt"], "--data and --log are the same file"),
    (["--data", "names.txt", "--plot", "hard"], ""),
    (["--data", "x.best.txt", "--save", "x.txt"], "--data and the best of --save are the same file: x.best.txt"),
    (["--config", "c.toml", "--log", "c.toml"], "--config and --log are the same file"),
    (["--config", "c.toml", "--tensorboard", "c.toml"], "--config and --tensorboard are the same file"),
    (["--save", "new", "--export", "../{folder}/new"], "--save and --export are the same file"),
    (["--save", "lost", "--log", "new.npz"], "--save and --log are the same file: new.npz"),
    (["--save", "x.npz", "--export", "x.best.npz"], "--export and the best of --save are the same file"),
    (["--resume", "done.npz", "--export", "done.npz"], "and --export are the same file: done.npz"),
    (["--resume", "done.npz", "--log", "done.npz"], "and --log are the same file: done.npz"),
    (["--save", fl.data.NAMES], "--data and --save are the same file"),
    (["--save", "pipe"], "--save pipe: cannot be written: a device or a pipe"),
    (["--export", "pipe"], "--export pipe: cannot be written: a device or a pipe"),
    (["--export", "/dev/stdout"], "--export /dev/stdout: cannot be written: a device or a pipe"),
    (["--save", "run.npz"], "the best of --save run.best.npz: cannot be written: Is a directory"),
]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("flags, message", SAME, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_files_that_would_overwrite_each_other_are_refused_before_the_work(flags, message, files):
    if "--export" in flags:
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    if "--plot" in flags:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        os.link(files / "names.txt", files / "hard.png")
        message = "--data and --plot are the same file: hard.png"
    before = content(files)
    done = run(*(flag.format(folder=files.name) for flag in flags), cwd=files)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr.splitlines()[-1]
    assert content(files) == before


def test_the_file_that_output_is_redirected_to_cannot_be_another_of_its_files(files):
    for flags in (["--save", "out"], ["--log", "out"], ["--log", "/dev/stdout"], ["--data", "out"]):
        (files / "out").write_text("anna\nbe\n" * 10)
        with open(files / "out", "a") as file:
            done = subprocess.run([*COMMAND, *flags], stdout=file, stderr=subprocess.PIPE, cwd=files, text=True)
        assert done.returncode == 2
        assert f"{flags[0]} and standard output are the same file" in done.stderr
        assert (files / "out").read_text() == "anna\nbe\n" * 10


def test_a_run_may_go_on_in_its_own_file_and_from_its_best(files):
    assert run("--resume", "done.npz", "--save", "done.npz", "--quiet", cwd=files).returncode == 0
    assert run("--resume", "done.best.npz", "--save", "done.npz", "--quiet", cwd=files).returncode == 0


def rename(path, to, arguments):
    """Save a checkpoint again with other stored arguments."""
    arrays, meta = checkpoint.read(path)
    meta["notes"]["arguments"] |= arguments
    del meta["format"]
    checkpoint.write(to, arrays, meta)


def test_resume_writes_only_what_the_command_line_names(files):
    (files / "mine.txt").write_text("mine")
    (files / "other" / "deep").mkdir(parents=True)
    (files / "way").symlink_to("other/deep")
    stored = {"steps": 20, "export": "mine.txt", "plot": "mine.txt", "log": "mine.txt", "tensorboard": "events"}
    for save in ("mine.txt", "way/../evil.npz", "link"):
        rename(files / "done.npz", files / "evil.npz", {**stored, "save": save})
        before = content(files)
        done = run("--resume", "evil.npz", cwd=files)
        assert done.returncode == 0
        assert f"not writing to {save} again" in done.stderr
        assert content(files) == before
        assert [path.name for path in (files / "other").iterdir()] == ["deep"]
    # Its own name is named; a link beside it is not.
    rename(files / "done.npz", files / "evil.npz", {"save": "evil.npz"})
    (files / "evil.best.npz").symlink_to("mine.txt")
    done = run("--resume", "evil.npz", cwd=files)
    assert (done.returncode, done.stdout) == (2, "")
    assert "evil.best.npz is a symbolic link: use --save evil.npz" in done.stderr
    assert (files / "mine.txt").read_text() == "mine"


# --- The end of a run

def test_the_training_loss_is_estimated_on_no_more_than_is_held_out():
    docs = [f"{i}" for i in range(1000)]
    (some,) = sample_of(docs, 100, 8, 42)
    assert len(set(some)) == 100
    assert set(some) < set(docs)
    assert (some,) == tuple(sample_of(docs, 100, 8, 42)) != tuple(sample_of(docs, 100, 8, 43))
    assert sample_of(docs, 1000, 8, 42) == [docs]
    text = "".join(docs)
    parts = sample_of(text, 100, 8, 42)
    assert [len(part) for part in parts] == [10] * 10
    assert all(part in text for part in parts)
    assert [len(part) for part in sample_of(text, 20, 8, 42)] == [10, 10]
    assert sample_of(text, len(text) + 1, 8, 42) == [text]


def test_ctrl_c_after_the_last_step_finds_everything_written(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    # Two hundred thousand long documents, of which a short run sees few: evaluating them takes seconds.
    (tmp_path / "names.txt").write_text("\n".join(f"{i:020}" for i in range(200_000)))
    files = {"--save": "run.npz", "--export": "x.safetensors", "--plot": "x.png", "--log": "x.jsonl"}
    flags = ["--data", "names.txt", "--model", "gpt", "--n-embd", 64, "--steps", 5, "--val-fraction", 0.4]
    flags += [word for pair in files.items() for word in pair]
    # The best is looked for once, at the end, and takes as long: what is waited for is the line after it.
    flags += ["--eval-every", 1000]
    process = subprocess.Popen(
        [*COMMAND, *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True
    )
    for line in process.stdout:
        if line.startswith("evaluating  80,000 documents trained on and 80,000 held out"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "fastloop-train: interrupted\n")
    assert "loss" not in out
    assert {path.name for path in tmp_path.iterdir()} >= {*files.values(), "run.best.npz"}
    assert fl.Trainer.load(tmp_path / "run.npz").steps == 5
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert '"event": "end"' in (tmp_path / "x.jsonl").read_text()


@pytest.mark.parametrize("flags, status", [(["--lr", 10], 0), (["--lr", "1e200"], 1)], ids=str)
def test_a_run_that_ends_worse_than_it_began_is_diagnosed_unasked(flags, status, tmp_path):
    done = run("--steps", 300, *flags, cwd=tmp_path)
    assert done.returncode == status
    assert re.search("^diagnosis   (diverging|lr_too_large): ", done.stdout, re.M)
    assert "diagnosis" not in run("--steps", 300, *flags, "--quiet", cwd=tmp_path).stdout
    assert "diagnosis" not in run("--steps", 300, cwd=tmp_path).stdout


def test_samples_during_the_training_name_their_step(tmp_path):
    done = run("--steps", 2000, "--sample-every", 500, "--sample", 1, cwd=tmp_path)
    assert re.findall("^sample (.*?) *[a-z]+$", done.stdout, re.M) == ["500", "1,000", "1,500", "2,000", ""]


# --- Resumed with more steps

def test_a_run_of_constant_lr_made_longer_is_the_longer_run(tmp_path):
    flags = ["--schedule", "constant", "--shuffle", "--quiet", "--sample", 0, "--eval-every", 50]
    assert run(*flags, "--steps", 300, "--save", "whole.npz", cwd=tmp_path).returncode == 0
    assert run(*flags, "--steps", 100, "--save", "run.npz", cwd=tmp_path).returncode == 0
    done = run("--resume", "run.npz", "--steps", 300, "--no-quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed     run.npz, after step 100 of 100\nlonger      now 300 steps long\n" in done.stdout
    one, other = (fl.Trainer.load(tmp_path / name) for name in ("whole.npz", "run.npz"))
    assert one.model.params.flat.tobytes() == other.model.params.flat.tobytes()
    assert one.history.evaluations == other.history.evaluations
    again = run("--resume", "run.npz", cwd=tmp_path)        # it has the new length now
    assert again.returncode == 0, again.stderr
    assert fl.Trainer.load(tmp_path / "run.npz").steps == 300


def test_a_run_made_longer_says_that_its_schedule_is_another_and_trains_on(tmp_path):
    assert run("--steps", 100, "--save", "run.npz", "--quiet", cwd=tmp_path).returncode == 0
    done = run("--resume", "run.npz", "--steps", 400, "--no-quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = "now 400 steps long, with the learning rates that a run of this length has from here on (so far: of 100)"
    assert f"\nlonger      {said}\n" in done.stdout
    lr = fl.Trainer.load(tmp_path / "run.npz").history.lr
    short, long = fl.schedules.linear(100), fl.schedules.linear(400)
    assert lr.tolist() == [0.01 * (short if step < 100 else long)(step) for step in range(400)]
    assert lr[100] == 0.0075
    refused = run("--resume", "run.npz", "--steps", 300, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--steps 300: the run has 400, and can only be made longer" in refused.stderr
    assert run("--resume", "run.npz", "--steps", 400, cwd=tmp_path).returncode == 0


def test_a_run_of_epochs_is_made_longer_in_steps(tmp_path):
    flags = ["--batch-size", 100, "--epochs", 1, "--save", "run.npz", "--quiet", "--schedule", "constant"]
    assert run(*flags, cwd=tmp_path).returncode == 0
    done = run("--resume", "run.npz", "--steps", 60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert fl.Trainer.load(tmp_path / "run.npz").steps == 60
    assert run("--resume", "run.npz", cwd=tmp_path).returncode == 0


# --- Started in odd ways

@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_reason_to_fail(closed, tmp_path):
    command = " ".join([*COMMAND, "--steps 200 --save run.npz --sample-every 100", closed])
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("loss" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))
    assert fl.Trainer.load(tmp_path / "run.npz").steps == 200
    command = " ".join([*COMMAND, "--steps 0", closed])
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == ("2>&-" not in closed)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_is_full_is_one_line_and_status_2(tmp_path):
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}       # what is buffered comes up again at exit
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            COMMAND, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment, timeout=60
        )
    assert (done.returncode, done.stderr) == (2, "fastloop-train: error: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("module", ["fastloop.train", "fastloop"])
def test_an_unknown_instruction_set_is_one_line_and_status_2(module, tmp_path):
    environment = {**os.environ, "FASTLOOP_ISA": "mmx"}
    done = subprocess.run(
        [sys.executable, "-m", module], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("fastloop: error: FASTLOOP_ISA = 'mmx' is not one of .*baseline, .*\n", done.stderr)
    # From Python it is an exception, whatever the program is called with.
    code = "import sys\ntry:\n    import fastloop\nexcept ImportError as error:\n    print(error)"
    for arguments in (["-c", code], ["-c", code, "-m", "fastloop.train"]):
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("FASTLOOP_ISA = 'mmx' is not one of ")


@pytest.mark.parametrize("module, name", [("fastloop.train", "fastloop-train"), ("fastloop", "fastloop")])
def test_ctrl_c_while_the_command_is_imported_is_a_line_and_130(module, name, tmp_path):
    # In the place of NumPy, whose import takes the most time.
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint('went on')\n")
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{name}: interrupted\n")
    # A program that imports the package keeps its own Ctrl-C.
    code = "try:\n    import fastloop\nexcept KeyboardInterrupt:\n    print('caught')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "caught\n", "")


def test_the_package_itself_names_its_command():
    def package(*arguments):
        command = [sys.executable, "-m", "fastloop", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    done = package()
    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m fastloop.train" in done.stdout
    assert "instruction set" in done.stdout
    assert package("--version").stdout == run("--version").stdout == f"fastloop {fl.__version__}\n"
    done = package("--steps", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fastloop: error: it takes no arguments; did you mean python -m fastloop.train --steps 3?\n"


def test_a_learning_rate_of_0_is_reported_in_a_line(capsys):
    assert train.main(["--steps=3", "--lr=0", "--sample=0"]) == 0
    out, err = capsys.readouterr()
    assert "warning     the learning rate was 0 at every step: nothing was learnt\n" in out
    assert err == ""


def test_a_checkpoint_of_another_kind_of_model_is_not_resumed(tmp_path, capsys):
    trainer = fl.Trainer(fl.LinearRegression(1))
    trainer.notes = {"arguments": {}}
    trainer.save(tmp_path / "run.npz")
    assert train.main([f"--resume={tmp_path / 'run.npz'}"]) == 2
    assert "was not saved by this command" in capsys.readouterr().err
