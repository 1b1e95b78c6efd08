"""The command `python -m fastloop.train`: from the flags (flags.py) to a trained model, and what it prints on the way.

`run` tells it from beginning to end.  No training logic lives here.
"""

import argparse
import contextlib
import errno
import inspect
import math
import os
import stat
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _command, checkpoint, configfile, data, errors, flags, models, schedules, threads
from .callbacks import JsonLog, Progress, TensorBoard
from .diagnose import diagnose
from .flags import FLAGS, key, parse
from .history import History, with_ending
from .lr_find import lr_find
from .tokenizer import CharTokenizer
from .trainer import Trainer

PROG = "fastloop-train"
Documents = list[str] | str         # the lines of a file, or one text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 diverged, 2 bad input, 130 Ctrl-C, 141 closed pipe."""
    open_standard_streams()
    try:
        _command.begin()
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.FastloopWarning)     # `run` says it in its own way
            status = run(*parse(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
        return 141
    except (errors.DivergenceError, FloatingPointError) as error:
        return complain(error, 1)
    except (errors.FastloopError, ValueError, OSError, LookupError, OverflowError, MemoryError, ImportError) as error:
        return complain(error, 2)
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted", file=sys.stderr)
        return 130
    return status


def run(args: argparse.Namespace, given: set[str]) -> int:
    """All that the command does; returns the exit status.  given: the names of the flags that were given."""
    if args.resume:
        args = resumed_arguments(args, given)
    if args.threads is not None:
        threads.set_num_threads(args.threads)
    check_files(args)
    job = prepare(args, given)
    describe(job)
    if args.dry_run:
        return dry_run(job)
    if args.lr_find:
        return find_lr(job)
    history, steps, seconds = train(job)
    report(job, history)
    write(job)
    return conclude(job, history, steps, seconds)


@dataclass
class Job:
    """What a run works on."""

    args: argparse.Namespace
    trainer: Trainer
    train: Documents            # as they were read, and as the compiled model reads them
    val: Documents | None
    train_data: Any
    val_data: Any
    cut: int                    # documents longer than the model's block
    sampling: dict[str, Any]    # arguments of generate
    baseline: float             # nats per token of bigram counts
    lengths: tuple[int, int] | None     # in steps, of a resumed run before --steps made it longer, and now

    @property
    def text(self) -> bool:
        """Whether it is one text rather than documents."""
        return isinstance(self.train, str)

    @property
    def unit(self) -> str:
        return "characters" if self.text else "documents"

    def say(self, name: str, text: str) -> None:
        """Print a line, unless with --quiet; in a dry run as a comment of the configuration."""
        if not self.args.quiet:
            line = f"{name:12}{text}"
            print(configfile.comment(line) if self.args.dry_run else line, flush=True)


# Before the training


def prepare(args: argparse.Namespace, given: set[str]) -> Job:
    """Read the data, make the model and its trainer, and refuse what would fail later."""
    train: Any
    val: Any
    train, val = load_data(args)
    text = isinstance(train, str)
    if args.overfit_one_batch and not text:
        train, val = train[: args.batch_size * args.grad_accum], None
    if args.resume:
        trainer, lengths = resumed_trainer(args, given)
    else:
        trainer, lengths = make_trainer(args, train + val if val else train, len(train)), None
    block_size = trainer.model.block_size
    if args.overfit_one_batch and text:
        train, val = train[: block_size + 1], None
    sampling = {name: vars(args)[name] for name in ("temperature", "top_k", "top_p", "prompt")}
    sampling["length"] = args.length if text else None
    try:
        trainer.model.generate(trainer.tokenizer, 0, **sampling)
    except errors.DataError as error:
        raise errors.DataError(f"--prompt: {error}") from None
    trainer.notes = {"arguments": vars(args)}
    train_data, cut = trainer.prepare(train)
    val_data = None
    if val:
        if text and len(val) <= block_size:
            raise ValueError(
                f"the {len(val)} characters held out hold no window of {block_size} predictions: take another "
                "--val-fraction (0 holds out none) or --block-size"
            )
        val_data, val_cut = trainer.prepare(val)
        cut += val_cut
    elif args.patience or args.restore_best:
        raise ValueError("--patience and --restore-best need documents held out: --val-fraction")
    baseline = data.bigram_baseline(train, val or None, tokenizer=trainer.tokenizer, block_size=block_size)
    return Job(args, trainer, train, val, train_data, val_data, cut, sampling, baseline, lengths)


def load_data(args: argparse.Namespace) -> tuple[Documents, Documents]:
    """(train, validation): two lists of documents, or two texts."""
    if args.format == "text":
        if args.data is None:
            raise ValueError("--format text needs a file: --data FILE")
        if args.epochs:
            raise ValueError("--format text: windows are drawn at random, so there are no --epochs; use --steps")
        text = data.load_text(args.data, args.encoding)
        first = len(text) - int(len(text) * args.val_fraction)
        return text[:first], text[first:]
    return data.split_docs(data.load_docs(args.data, args.encoding), args.val_fraction, args.seed)


def make_trainer(args: argparse.Namespace, docs: Documents, n_train: int) -> Trainer:
    """A trainer for docs, of which n_train are trained on."""
    tokenizer = CharTokenizer(docs)
    make_model, make_optimizer = flags.MODELS[args.model], flags.OPTIMIZERS[args.optimizer]
    also = {"betas": (args.beta1, args.beta2), "no_decay": [name for name in args.no_decay.split(",") if name]}
    return Trainer(
        make_model(tokenizer.vocab_size, **arguments_of(make_model, vars(args))),
        make_optimizer(**arguments_of(make_optimizer, vars(args) | also)),
        tokenizer=tokenizer, schedule=make_schedule(args, length_in_steps(args, n_train)),
        clip_norm=args.clip_norm, clip_value=args.clip_value, grad_accum=args.grad_accum,
    )


def arguments_of(make: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that are arguments of `make`, by their names; where one is None, its default is taken."""
    names = inspect.signature(make).parameters
    return {name: value for name, value in values.items() if name in names and value is not None}


def make_schedule(args: argparse.Namespace, steps: int) -> schedules.Schedule:
    """The schedule of a run of so many steps."""
    make = getattr(schedules, args.schedule)
    arguments = {} if args.lr_end is None else {"end": args.lr_end}
    if args.schedule in flags.DECAY_STEPS:
        arguments[flags.DECAY_STEPS[args.schedule]] = args.decay_steps or max(1, steps // 5)
    if args.schedule == "warmup_stable_decay":
        return make(args.warmup, **arguments)
    return schedules.warmup(args.warmup, make(**arguments)) if args.warmup else make(**arguments)


def length_in_steps(args: argparse.Namespace, n_train: int) -> int:
    return args.steps or args.epochs * -(-n_train // (args.batch_size * args.grad_accum))


def describe(job: Job) -> None:
    """Say what is about to be done."""
    args, trainer, train, val = job.args, job.trainer, job.train, job.val
    block_size, tokenizer = trainer.model.block_size, trainer.tokenizer
    typed = flags.as_typed(args)
    if typed:
        job.say("arguments", typed)
    n = len(train) + len(val or ())
    split = f"{len(train):,} to train on, {len(val):,} held out" if val else "all to train on"
    split += " at its end" if val and job.text else f" (seed {args.seed})" if val else ""
    job.say(job.unit, f"{n:,}: {split}")
    if not job.text:
        fits = f"none, {block_size} predictions are enough for each document"
        job.say("cut", f"{job.cut:,} of {n:,} documents, to {block_size} predictions" if job.cut else fits)
    job.say("vocabulary", f"{tokenizer.vocab_size}: {tokenizer.vocab_size - 1} characters and BOS")
    kind = "" if trainer.model.dtype == np.float64 else f" of {trainer.model.dtype}"
    job.say("parameters", f"{trainer.model.num_params:,}{kind}")
    counted = "held out" if val else "on the same data"
    job.say("baseline", f"{job.baseline:.4f} nats per token (bigram counts, {counted})")
    if job.lengths is not None:
        before, now = job.lengths
        job.say("resumed", f"{args.resume}, after step {len(trainer.history or ()):,} of {before:,}")
        if before < now:
            rates = "with the learning rates that a run of this length has from here on"
            rates = f", {rates} (so far: of {before:,})" if hasattr(trainer.schedule, "for_steps") else ""
            job.say("longer", f"now {now:,} steps long{rates}")


# In place of the training


def dry_run(job: Job) -> int:
    """One step, described, and the configuration; nothing is written.  All of it together is a file for --config."""
    args, trainer = job.args, job.trainer
    if hasattr(trainer.schedule, "for_steps"):      # the first step is one of the whole run
        trainer.schedule = trainer.schedule.for_steps(length_in_steps(args, job.train_data.n_examples))
    history = trainer.fit(job.train_data, steps=1, batch_size=args.batch_size, seed=args.seed)
    for name, shape in trainer.model.params.shapes.items():
        job.say("tensor", f"{name} {' x '.join(map(str, shape))}")
    moments = len(trainer.optimizer.flats)
    copies = ("parameters and gradients", "parameters, gradients and momentum", "parameters, gradients and moments")
    job.say("memory", f"{trainer.model.params.flat.nbytes * (2 + moments) / 2**20:.2f} MiB of {copies[moments]}")
    job.say("optimizer", repr(trainer.optimizer))
    step = f"loss {history.loss[0]:.4f}, norm {history.norm[0]:.4f}, {history.predictions} predictions"
    print(configfile.comment(f"{'step':12}{step}"))
    print(f"\n{flags.as_configuration(args)}")
    return 0


def find_lr(job: Job) -> int:
    """The range test, in ten lines."""
    found = lr_find(job.trainer, job.train_data, batch_size=job.args.batch_size, seed=job.args.seed)
    last = len(found.lrs) - 1
    for i in sorted({last * k // 10 for k in range(11)}):
        print(f"{'lr':12}{found.lrs[i]:.1e}  loss {found.losses[i]:.4f} (smoothed)")
    hint = "none: the loss never fell" if found.suggestion is None else f"--lr {found.suggestion:.2g}"
    print(f"{'suggestion':12}{hint} ({found.stop_reason} after {len(found.lrs)} steps)")
    return 0


# The training


def train(job: Job) -> tuple[History, int, float]:
    """(the history, the steps taken here, their seconds); a run that diverges is drawn and diagnosed all the same."""
    args, trainer = job.args, job.trainer
    watched = (args.eval_every, args.patience, args.restore_best, args.save, args.log, args.plot, args.tensorboard)
    options = {
        "validation": job.val_data if any(watched) else None, "callbacks": make_callbacks(job),
        "log_every": args.log_every, "save": args.save, "save_every": args.save_every,
    }
    began, before = time.perf_counter(), trainer.steps
    try:
        if args.resume:
            history = trainer.resume(job.train_data, **options)
        else:
            length = {"epochs": args.epochs} if args.epochs else {"steps": args.steps}
            shuffle = args.data is not None if args.shuffle is None else args.shuffle
            history = trainer.fit(
                job.train_data, **length, batch_size=args.batch_size, shuffle=(shuffle and not job.text) or None,
                seed=args.seed, eval_every=args.eval_every, patience=args.patience, min_delta=args.min_delta,
                restore_best=args.restore_best, tol=args.tol, **options,
            )
    except errors.DivergenceError:
        draw(job)
        say_diagnosis(job, worse=True)
        raise
    return history, trainer.steps - before, time.perf_counter() - began


def make_callbacks(job: Job) -> list[Any]:
    args, progress = job.args, Progress()
    callbacks: list[Any] = [progress] if args.log_every and not args.quiet else []
    if args.sample_every:
        callbacks.append(Samples(args.sample_every, args.seed, job.sampling, progress.say if callbacks else print))
    if args.log:
        callbacks.append(JsonLog(args.log))
    if args.tensorboard:
        callbacks.append(TensorBoard(args.tensorboard))
    return callbacks


class Samples:
    """Prints a sample every so many steps, from a random stream of its own."""

    def __init__(self, every: int, seed: int, sampling: dict[str, Any], say: Callable[[str], None]) -> None:
        self.every, self.seed, self.sampling, self.say = every, seed, sampling, say

    def on_log(self, trainer: Trainer) -> None:
        done = len(trainer.history or ())
        if done % self.every == 0:
            seed = self.seed + done         # so that a resumed run prints the same
            (text,) = trainer.model.generate(trainer.tokenizer, 1, seed=seed, **self.sampling)
            self.say(as_sample(text, f"sample {done:,}"))


def as_sample(text: str, name: str = "sample") -> str:
    return f"{name:11} {text}".replace("\n", "\n" + 12 * " ")


# After the training


def report(job: Job, history: History) -> None:
    """Say how it ended."""
    if not history.lr.any():
        job.say("warning", "the learning rate was 0 at every step: nothing was learnt")
    if history.stop_reason != "finished":
        job.say("stopped", f"{history.stop_reason}, after step {len(history):,}")
    if history.evaluations:
        restored = ", restored" if job.args.restore_best and not history.interrupted else ""
        best = f"validation {job.trainer.best_loss:.4f} after step {job.trainer.best_step:,}{restored}"
        job.say("best", best)


def write(job: Job) -> None:
    """Write the files asked for, before the evaluation, which may take a while and be ended by Ctrl-C."""
    if job.args.export:
        job.trainer.model.save_safetensors(job.args.export, job.trainer.tokenizer)
    draw(job)


def draw(job: Job) -> None:
    """The picture of a run, however it ended."""
    history = job.trainer.history
    if job.args.plot and history:
        history.plot(job.args.plot, baseline=job.baseline)
        path = with_ending(job.args.plot)
        if path != job.args.plot:
            job.say("picture", f"{path}, since --plot {job.args.plot} has no file extension")


def conclude(job: Job, history: History, steps: int, seconds: float) -> int:
    """Print the losses, samples and what looks wrong; returns the exit status."""
    args, trainer = job.args, job.trainer
    if history.interrupted:             # whoever pressed Ctrl-C does not wait for an evaluation
        print(f"{'loss':12}{history.mean_loss():.4f}, the mean of the last {min(len(history), 100)} steps")
    elif not evaluate(job):
        say_diagnosis(job, worse=True)
        raise FloatingPointError("the loss is no longer finite: the last steps led too far; try a smaller --lr")
    job.say("time", f"{seconds:.3f} s" + (f", {seconds / steps * 1e6:.1f} us a step" if steps else ""))
    for sample in trainer.model.generate(trainer.tokenizer, args.sample, seed=args.seed, **job.sampling):
        print(as_sample(sample))
    say_diagnosis(job, ended_worse(history))
    return 130 if history.interrupted else 0


def evaluate(job: Job) -> bool:
    """Print the losses, the training loss on no more data than is held out; returns whether they are finite."""
    trainer, train, val = job.trainer, job.train, job.val
    parts = sample_of(train, len(val), trainer.model.block_size, job.args.seed) if val else [train]
    n, of = sum(map(len, parts)), ""
    if n < len(train):
        of = f" (on {n:,} of {len(train):,} {job.unit})"
    job.say("evaluating", f"{n:,} {job.unit} trained on" + (f" and {len(val):,} held out" if val else ""))
    train_loss = val_loss = sum(map(trainer.evaluate, parts)) / len(parts)
    losses = f"train {train_loss:.4f}{of}"
    if val:
        val_loss = trainer.evaluate(val)
        losses += f", validation {val_loss:.4f}"
    print(f"{'loss':12}{losses} nats per token")
    if val:
        job.say("gap", f"{round(val_loss - train_loss, 4) + 0.0:+.4f} from train to validation")
    return math.isfinite(train_loss) and math.isfinite(val_loss)


def sample_of(train: Documents, n: int, block_size: int, seed: int) -> list[Any]:
    """At most n of the documents, or characters, drawn at random: a list of parts that count the same.

    A text gives up to ten passages, one from each part of it, since a single one may be unlike the rest.
    """
    if n >= len(train):
        return [train]
    rng = np.random.default_rng(seed)
    if isinstance(train, str):
        count = min(10, n // (block_size + 1))
        size, span = n // count, len(train) // count
        firsts = [i * span + int(rng.integers(span - size + 1)) for i in range(count)]
        return [train[first : first + size] for first in firsts]
    return [[train[i] for i in np.sort(rng.choice(len(train), n, replace=False))]]


def ended_worse(history: History) -> bool:
    """Whether the loss at the end, the mean of the last tenth, is above the first."""
    n = max(10, len(history) // 10)
    return len(history) >= n and not history.mean_loss(n) <= history.loss[0]


def say_diagnosis(job: Job, worse: bool) -> None:
    """The diagnosis of a run that was asked for, or that is worth saying unasked."""
    if not job.args.diagnose and (job.args.quiet or not worse):
        return
    found = diagnose(job.trainer)
    if found or job.args.diagnose:
        for line in str(found).replace("\n    ", "\n" + 12 * " ").split("\n"):
            print(line if line.startswith(" ") else f"{'diagnosis':12}{line}")


# Going on with a run


def resumed_arguments(args: argparse.Namespace, given: set[str]) -> argparse.Namespace:
    """The arguments of the checkpoint, under those that a resumed run may change."""
    refused = given - flags.RESUMABLE
    if refused:
        raise ValueError(
            f"--{min(refused)}: a resumed run keeps its own; leave it out (from Python, fl.Trainer.load(...).fit(...) "
            "trains on with other settings)"
        )
    _, meta = checkpoint.read(args.resume)
    try:
        stored = dict(meta["notes"]["arguments"])
    except (LookupError, TypeError, ValueError):
        raise errors.CheckpointError(f"{args.resume}: was not saved by this command; resume it from Python") from None
    # The file may come from somebody else: its arguments are checked like a configuration's, and do not choose which
    # files are written, except that a run may go on saving to this file, by its name on the command line.
    own = {key(flag): vars(args)[key(flag)] for flag in {*given, "config", "resume"}}
    stored = {name: value for name, value in stored.items() if value is not None and name not in own}
    if "steps" in own:
        stored.pop("epochs", None)
    for flag in ("save", "export", "log", "plot", "tensorboard"):
        path = stored.pop(flag, None)
        if flag == "save" and path and identity(str(path)) == identity(args.resume):
            stored["save"] = args.resume
            if os.path.islink(best := checkpoint.best_path(args.resume)):
                raise ValueError(f"{best} is a symbolic link: use --save {args.resume} to write its target")
        elif path:
            print(f"{PROG}: not writing to {path} again; use --{flag} {path} to do so", file=sys.stderr)
    stored = flags.parse_stored(stored, args.resume)
    merged = argparse.Namespace(**{**stored, **own})
    flags.refuse_unused(merged, {flag: stored[key(flag)] for flag in flags.ALL_FLAGS}, args.resume)
    flags.refuse_unused(merged, {flag: own[key(flag)] for flag in given})
    return merged


def resumed_trainer(args: argparse.Namespace, given: set[str]) -> tuple[Trainer, tuple[int, int]]:
    """The trainer of the checkpoint, its run as long as --steps says; and how long the run was and is now."""
    trainer = Trainer.load(args.resume)
    if not isinstance(trainer.model, models.LanguageModel):     # though it has arguments of this command
        raise errors.CheckpointError(f"{args.resume}: was not saved by this command; resume it from Python")
    if trainer.last_fit is None:
        raise errors.CheckpointError(f"{args.resume}: holds no run to go on with")
    before = now = trainer.last_fit.settings.steps
    if "steps" in given:
        now = args.steps
        if now < before:
            raise ValueError(f"--steps {now}: the run has {before}, and can only be made longer")
        trainer.last_fit.lengthen(now)
    return trainer, (before, now)


# Files and streams


def check_files(args: argparse.Namespace) -> None:
    """Before any work, refuse files that would overwrite each other, and those that could not be written."""
    paths = {flag: vars(args)[flag] for flag, entry in FLAGS["files"].items() if entry.kind is str}
    if args.plot:
        paths["plot"] = with_ending(args.plot)
    files = [("--data", args.data or data.NAMES)]
    files += [(f"--{flag}", path) for flag, path in paths.items() if path is not None]
    if args.save:
        files.append(("the best of --save", checkpoint.best_path(args.save)))
    found: dict[Any, str] = {}
    for name, path in files:
        other = found.setdefault(identity(path), name)
        # A run goes on in its own file, and from its best to a better one.
        if other != name and (other, name) not in (("--save", "--resume"), ("--resume", "the best of --save")):
            raise ValueError(f"{other} and {name} are the same file: {path}")
    for name, descriptor in (("standard output", 1), ("standard error", 2)):
        with contextlib.suppress(OSError):          # closed
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and identity(descriptor) in found:
                raise ValueError(f"{found[identity(descriptor)]} and {name} are the same file")
    for name, path in files:
        if name in ("--save", "--export", "--plot", "the best of --save"):
            check_writable(name, path)
    if args.export:
        models.safetensors()
    if args.plot:
        from .plot import check_format

        check_format(paths["plot"])


def check_writable(name: str, path: str) -> None:
    """Raise ValueError where a file of that path could not be put in place of what stands there."""
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"{name} {path}: there is no folder {folder}")
    try:
        checkpoint.check_replaceable(path)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
    except OSError as error:
        raise ValueError(f"{name} {path}: cannot be written: {error.strerror}") from None


def identity(path: str | int) -> Any:
    """What all names of a file (or its descriptor) have in common."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(str(path))
    return found.st_dev, found.st_ino


def open_standard_streams() -> None:
    """Open a closed standard stream (`>&-`) as /dev/null, so that no other file gets its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))       # noqa: SIM115 -- for as long as the process lives


def complain(error: Exception | str, status: int) -> int:
    """Say what is wrong in one line on stderr."""
    if isinstance(error, OSError) and error.filename is not None:
        error = f"{error.filename}: {error.strerror}"
    print(f"{PROG}: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        silence_stdout()
    return status


def silence_stdout() -> None:
    """Discard output that cannot be written, or Python would complain of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
