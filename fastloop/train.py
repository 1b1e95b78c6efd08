"""The command `python -m fastloop.train`: reads arguments, prints what happens.  No training logic lives here."""

import argparse
import contextlib
import errno
import json
import math
import os
import re
import shlex
import stat
import sys
import time
import warnings

import numpy as np

from . import __version__, checkpoint, config, data, errors, models, optim, schedules, tokenizer
from ._check import nearest
from .callbacks import JsonLog, Progress, TensorBoard
from .diagnose import diagnose
from .history import with_ending
from .lr_find import lr_find
from .run import best_path
from .trainer import Trainer

SCHEDULES = (
    "constant", "linear", "cosine", "exponential", "one_cycle", "warmup_stable_decay", "inverse_sqrt", "step_decay"
)
EPILOG = """\
examples:
  %(prog)s --model gpt --batch-size 16 --steps 2000
  %(prog)s --data names.txt --eval-every 100 --patience 5 --restore-best
  %(prog)s --data book.txt --format text --model gpt --block-size 64 --n-embd 64
  %(prog)s --steps 100000 --save run.npz      then, after Ctrl-C:
  %(prog)s --resume run.npz                   or, for more of it, with --steps 200000

exit status: 0 done, 1 the loss was no longer finite, 2 bad input, 130 Ctrl-C, 141 closed pipe
"""


class Parser(argparse.ArgumentParser):
    source = ""         # the file that the arguments come from

    def parse_args(self, args=None, namespace=None):
        found = super().parse_args(args, namespace)
        for name, value in vars(found).items():
            flag = name.replace("_", "-")
            # [] is what some versions of argparse make of --save=--; an empty variable of a script gives "".
            if value == [] or (value == "" and (flag in FLAGS["files"] or flag == "data")):
                self.error(f"argument --{flag}: expected one argument")
        return found

    def error(self, message):
        if message.startswith("unrecognized arguments: -"):
            flag = re.split("[ =]", message.removeprefix("unrecognized arguments: "))[0]
            message = f"{flag} is not a flag{did_you_mean(flag.lstrip('-'), '--')}"
        self.exit(2, f"{self.prog}: error: {self.source}{message} (--help lists the flags)\n")


def did_you_mean(flag, dashes=""):
    """The end of a sentence that names the flag most like this one, if any is."""
    near = nearest(flag.replace("-", "_"), [name.replace("-", "_") for name in ALL_FLAGS])
    return f"; did you mean {dashes}{near.replace('_', '-')}?" if near else ""


def at_least(low, kind=int):
    """An argparse type: a number of at least `low`."""

    def parse(text):
        value = kind(text)
        if not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {low}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def share(text):
    """An argparse type: a number in [0, 1)."""
    if not 0.0 <= float(text) < 1.0:
        raise argparse.ArgumentTypeError(f"{text} is outside [0, 1)")
    return float(text)


share.__name__ = "number"
count, size, number = at_least(0), at_least(1), at_least(0, float)

# Group -> flag -> (type, or the choices, or bool for a switch; default; help)
FLAGS = {
    "data": {
        "data": (str, None, "text file (default: 5,163 embedded first names)"),
        "format": (("lines", "text"), "lines", "a document a line, or one text learnt in windows"),
        "encoding": (str, "utf-8", "of the file"),
        "val-fraction": (share, 0.1, "share held out for validation"),
    },
    "model": {
        "model": (("bigram", "gpt"), "bigram", "what to train"),
        "n-embd": (size, 16, "width of the embeddings"),
        "block-size": (size, None, "predictions a document is cut to (default: 8; gpt 16)"),
        "n-layer": (size, 1, "layers of a gpt"),
        "n-head": (size, 4, "attention heads of a gpt"),
        "init-std": (number, 0.08, "standard deviation of the initial weights"),
    },
    "training": {
        "steps": (size, 1000, "training steps"),
        "epochs": (size, None, "times through the data, in place of --steps"),
        "batch-size": (size, 1, "documents a batch"),
        "grad-accum": (size, 1, "batches a step"),
        "shuffle": (bool, None, "a new order of the documents each epoch (default: with --data)"),
        "optimizer": (("adam", "adamw", "sgd"), "adam", "how to update"),
        "lr": (float, 0.01, "learning rate, before the schedule"),
        "schedule": (SCHEDULES, "linear", "how the learning rate falls"),
        "warmup": (count, 0, "steps of linear warm-up in front"),
        "lr-end": (number, None, "where linear, cosine, exponential and warmup_stable_decay end, as a share of --lr "
                   "(default: 0; exponential 0.01)"),
        "decay-steps": (size, None, "the fall at the end of warmup_stable_decay, from fall to fall of step_decay (to a "
                        "tenth), timescale of inverse_sqrt (default: a fifth of the run)"),
        "beta1": (float, 0.85, "decay of Adam's first moment"),
        "beta2": (float, 0.99, "decay of Adam's second moment"),
        "eps": (float, 1e-8, "added to Adam's denominator"),
        "momentum": (float, 0.0, "of sgd"),
        "nesterov": (bool, False, "Nesterov's form of it"),
        "weight-decay": (float, None, "decoupled with adamw (default: 0; adamw 0.01)"),
        "no-decay": (str, "", "tensors that weight decay leaves alone, such as wpe,lm_head"),
        "clip-norm": (float, None, "largest global gradient norm (default: any)"),
        "clip-value": (float, None, "largest magnitude of a single gradient (default: any)"),
        "seed": (count, 42, "of weights, split, order and samples"),
        "threads": (size, None, "at most so many (default: the CPUs at hand)"),
    },
    "validation": {
        "eval-every": (size, None, "steps from evaluation to evaluation (default: ten in all, or one an epoch, if a "
                       "file or a flag below needs them; else at the end)"),
        "patience": (size, None, "stop after so many evaluations without improvement"),
        "min-delta": (number, 0.0, "what counts as improvement"),
        "restore-best": (bool, False, "end with the parameters of the best evaluation"),
        "tol": (number, None, "stop when an epoch's mean loss changes by less"),
    },
    "files": {
        "config": (str, None, "TOML file whose keys are these flags"),
        "save": (str, None, "checkpoint, and beside it that of the best evaluation (run.npz, run.best.npz)"),
        "save-every": (size, None, "steps from checkpoint to checkpoint (default: at the end)"),
        "resume": (str, None, "checkpoint of a run to go on with, to the same bits, and to save to if it did; files "
                   "and output may be others, --steps more"),
        "export": (str, None, "the trained parameters as safetensors (extra: safetensors)"),
        "log": (str, None, "JSON lines of the run (a file, which is added to, or a pipe)"),
        "plot": (str, None, "picture of the run (extra: plot)"),
        "tensorboard": (str, None, "folder of TensorBoard events (extra: tensorboard)"),
    },
    "output": {
        "log-every": (count, 100, "steps from line to line; 0 for none"),
        "sample": (count, 10, "documents to sample at the end"),
        "sample-every": (size, None, "steps from one sample to the next during training"),
        "length": (size, 200, "characters of a sample of a text"),
        "temperature": (number, 0.8, "of the samples; 0 takes the most probable"),
        "top-k": (size, None, "sample from so many most probable tokens"),
        "top-p": (float, None, "sample from the fewest with this probability"),
        "prompt": (str, "", "how the samples begin"),
        "diagnose": (bool, False, "say what looks wrong with the run"),
        "dry-run": (bool, False, "take one step, print the whole configuration as a file for --config, write nothing"),
        "lr-find": (bool, False, "try learning rates from small to large instead of training, and suggest one"),
        "overfit-one-batch": (bool, False, "train on the first batch alone: its loss should fall"),
        "quiet": (bool, False, "print the losses and the samples only"),
    },
}
ALL_FLAGS = {flag: entry for flags in FLAGS.values() for flag, entry in flags.items()}

# What a resumed run may change: where it writes, what it prints, and how long it is.
RESUMABLE = {*FLAGS["output"], *FLAGS["files"], "threads", "data", "steps"}
RESUMABLE -= {"config", "dry-run", "lr-find", "overfit-one-batch"}


def make_parser(**options):
    parser = Parser(
        prog="fastloop-train",
        description="Train a small language model on a text file, and sample from it.", epilog=EPILOG,
        usage="%(prog)s [--flag value] ...", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        **options,
    )
    parser.add_argument("--version", action="version", version=f"fastloop {__version__}")
    for name, flags in FLAGS.items():
        group = parser.add_argument_group(name)
        for flag, (kind, default, text) in flags.items():
            if default not in (None, False, ""):
                text += f" (default: {default})"
            if kind is bool:
                group.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=default, help=text)
            elif isinstance(kind, tuple):
                group.add_argument(f"--{flag}", choices=kind, default=default, help=text)
            else:
                metavar = "X" if kind in (float, number, share) else "N"
                if kind is str:
                    metavar = {"prompt": "TEXT", "encoding": "NAME", "no-decay": "NAMES", "tensorboard": "FOLDER"}
                    metavar = metavar.get(flag, "FILE")
                group.add_argument(f"--{flag}", type=kind, metavar=metavar, default=default, help=text)
    return parser


def parse(argv):
    """The arguments, with those of --config before those of the command line; and which flags were given."""
    parser, silent = make_parser(), make_parser(argument_default=argparse.SUPPRESS)
    for action in silent._actions:
        action.default = argparse.SUPPRESS
    path = parser.parse_args(argv).config
    from_file = [] if path is None else read_config(path)
    given = []
    for parser.source, arguments in ((f"{path}: ", from_file), ("", argv)):
        parser.parse_args(arguments)            # alone, so that an error names its source
        given.append({name.replace("_", "-") for name in vars(silent.parse_args(arguments))})
        if given[-1] >= {"steps", "epochs"}:
            parser.error("steps and epochs: say one of them")
    args = parser.parse_args([*from_file, *argv])
    if "steps" in given[1]:
        args.epochs = None          # of the file
    if args.epochs is not None:
        args.steps = None
    return args, given[0] | given[1]


def read_config(path):
    """A TOML file as arguments; DataError for a key that is no flag."""
    try:
        import tomllib
    except ImportError:
        raise errors.DataError("--config needs Python 3.11 or newer, which reads TOML") from None
    with open(path, "rb") as file:
        try:
            table = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise errors.DataError(f"{path}: {error}") from None
    return table_as_arguments(table, path)


def table_as_arguments(table, path):
    """The flags of the file at `path` as they would be typed; DataError for a key that is no flag."""
    arguments, keys = [], {}
    for key, value in table.items():
        flag = key.replace("_", "-")
        if flag == "config":
            raise errors.DataError(f"{path}: {key!r} cannot stand in a file: one configuration does not read another")
        if flag not in ALL_FLAGS:
            raise errors.DataError(f"{path}: {key!r} is not a flag of this command{did_you_mean(flag)}")
        if keys.setdefault(flag, key) != key:
            raise errors.DataError(f"{path}: {keys[flag]!r} and {key!r} are the same flag: say one of them")
        if isinstance(value, bool) != (ALL_FLAGS[flag][0] is bool) or isinstance(value, (list, dict)):
            raise errors.DataError(f"{path}: {key} = {value!r} is not what --{flag} takes")
        arguments.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag}={value}")
    return arguments


class Samples:
    """Says a sample every so many steps, from a random stream of its own."""

    def __init__(self, every, seed, options, say):
        self.every, self.seed, self.options, self.say = every, seed, options, say

    def on_log(self, trainer):
        done = len(trainer.history)
        if done % self.every == 0:
            seed = self.seed + done         # so that a resumed run says the same
            (text,) = trainer.model.generate(trainer.tokenizer, 1, seed=seed, **self.options)
            self.say(as_sample(text, f"sample {done:,}"))


def as_sample(text, name="sample"):
    return f"{name:11} {text}".replace("\n", "\n" + 12 * " ")


def make_schedule(args, steps):
    """The schedule of a run of so many steps."""
    make, fifth = getattr(schedules, args.schedule), args.decay_steps or max(1, steps // 5)
    end = {} if args.lr_end is None else {"end": args.lr_end}
    if end and args.schedule not in ("linear", "cosine", "exponential", "warmup_stable_decay"):
        raise ValueError(f"--lr-end does not go with --schedule {args.schedule}")
    if args.schedule == "warmup_stable_decay":
        return make(args.warmup, fifth, **end)
    schedule = make(fifth) if args.schedule in ("inverse_sqrt", "step_decay") else make(**end)
    return schedules.warmup(args.warmup, schedule) if args.warmup else schedule


def make_trainer(args, docs, n_train):
    """A trainer for docs, of which n_train are trained on."""
    tok = tokenizer.CharTokenizer(docs)
    gpt = args.model == "gpt"
    block_size = args.block_size or (16 if gpt else 8)
    common = {"n_embd": args.n_embd, "block_size": block_size, "seed": args.seed, "init_std": args.init_std}
    if gpt:
        model = models.GPT(tok.vocab_size, n_head=args.n_head, n_layer=args.n_layer, **common)
    else:
        model = models.BigramLM(tok.vocab_size, **common)
    decay = {} if args.weight_decay is None else {"weight_decay": args.weight_decay}
    decay["no_decay"] = [name for name in args.no_decay.split(",") if name]
    if args.optimizer == "sgd":
        optimizer = optim.SGD(lr=args.lr, momentum=args.momentum, nesterov=args.nesterov, **decay)
    else:
        make = optim.AdamW if args.optimizer == "adamw" else optim.Adam
        optimizer = make(lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps, **decay)
    return Trainer(
        model, optimizer, tokenizer=tok, schedule=make_schedule(args, length_in_steps(args, n_train)),
        clip_norm=args.clip_norm, clip_value=args.clip_value, grad_accum=args.grad_accum,
    )


def length_in_steps(args, n_train):
    return args.steps or args.epochs * -(-n_train // (args.batch_size * args.grad_accum))


def load_data(args):
    """(train, validation): two lists of documents, or two texts."""
    if args.format == "text":
        if args.data is None:
            raise ValueError("--format text needs a file: --data FILE")
        if args.epochs:
            raise ValueError("--format text: windows are drawn at random, so there are no --epochs; say --steps")
        text = data.load_text(args.data, args.encoding)
        first = len(text) - int(len(text) * args.val_fraction)
        return text[:first], text[first:]
    return data.split_docs(data.load_docs(args.data, args.encoding), args.val_fraction, args.seed)


def make_callbacks(args, options):
    progress = Progress()
    callbacks = [progress] if args.log_every and not args.quiet else []
    if args.sample_every:
        callbacks.append(Samples(args.sample_every, args.seed, options, progress.say if callbacks else print))
    if args.log:
        callbacks.append(JsonLog(args.log))
    if args.tensorboard:
        callbacks.append(TensorBoard(args.tensorboard))
    return callbacks


def run(args, given):
    def say(name, text):
        if not args.quiet:
            line = f"{name:12}{text}"
            print(comment(line) if args.dry_run else line, flush=True)

    if args.resume:
        args = resumed_arguments(args, given)
    if args.threads is not None:
        config.set_num_threads(args.threads)
    check_files(args)
    text = args.format == "text"
    train, val = load_data(args)
    if args.overfit_one_batch and not text:
        train, val = train[: args.batch_size * args.grad_accum], None
    if args.resume:
        trainer = Trainer.load(args.resume)
        if not isinstance(trainer.model, models.LanguageModel):     # though it has arguments of this command
            raise errors.CheckpointError(f"{args.resume}: was not saved by this command; resume it from Python")
        before = lengthen(trainer, args.steps if "steps" in given else None, args.resume)
    else:
        trainer = make_trainer(args, train + (val or type(train)()), len(train))
    model, tok = trainer.model, trainer.tokenizer
    if args.overfit_one_batch and text:
        train, val = train[: model.block_size + 1], None
    options = {
        "temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "prompt": args.prompt,
        "length": args.length if text else None,
    }
    try:
        model.generate(tok, 0, **options)       # what is wrong with them should be said before the work
    except errors.DataError as error:
        raise errors.DataError(f"--prompt: {error}") from None
    trainer.notes = {"arguments": vars(args)}
    train_data, cut = trainer.prepare(train)
    val_data = None
    if val:
        if text and len(val) <= model.block_size:
            raise ValueError(
                f"the {len(val)} characters held out hold no window of {model.block_size} predictions: take another "
                "--val-fraction (0 holds out none) or --block-size"
            )
        val_data, val_cut = trainer.prepare(val)
        cut += val_cut
    if not val and (args.patience or args.restore_best):
        raise ValueError("--patience and --restore-best need documents held out: --val-fraction")
    baseline = data.bigram_baseline(train, val or None, tokenizer=tok, block_size=model.block_size)

    changed = [argument for flag in ALL_FLAGS for argument in as_argument(flag, vars(args)[flag.replace("-", "_")])]
    if changed:
        say("arguments", shlex.join(changed))
    unit, n = "characters" if text else "documents", len(train) + len(val or ())
    split = f"{len(train):,} to train on, {len(val):,} held out" if val else "all to train on"
    split += " at its end" if val and text else f" (seed {args.seed})" if val else ""
    say(unit, f"{n:,}: {split}")
    if not text:
        fits = f"none, {model.block_size} predictions are enough for each document"
        say("cut", f"{cut:,} of {n:,} documents, to {model.block_size} predictions" if cut else fits)
    say("vocabulary", f"{tok.vocab_size}: {tok.vocab_size - 1} characters and BOS")
    say("parameters", f"{model.num_params:,}")
    say("baseline", f"{baseline:.4f} nats per token (bigram counts, {'held out' if val else 'on the same data'})")
    if args.dry_run:
        return dry_run(trainer, train_data, args, say)
    if args.lr_find:
        return find_lr(trainer, train_data, args)
    if args.resume:
        say("resumed", f"{args.resume}, after step {len(trainer.history):,} of {before:,}")
        if before < trainer._run.steps:
            now = f"now {trainer._run.steps:,} steps long"
            if hasattr(trainer.schedule, "for_steps"):
                now += f", with the learning rates that a run of this length has from here on (so far: of {before:,})"
            say("longer", now)

    writing = {"save": args.save, "save_every": args.save_every, "callbacks": make_callbacks(args, options)}
    writing["log_every"] = args.log_every
    watched = (args.eval_every, args.patience, args.restore_best, args.save, args.log, args.plot, args.tensorboard)
    evaluating = {"validation": val_data if any(watched) else None}
    began = time.perf_counter()
    before = trainer.steps
    try:
        if args.resume:
            history = trainer.resume(train_data, **evaluating, **writing)
        else:
            length = {"epochs": args.epochs} if args.epochs else {"steps": args.steps}
            shuffle = args.data is not None if args.shuffle is None else args.shuffle
            history = trainer.fit(
                train_data, **length, batch_size=args.batch_size, shuffle=(shuffle and not text) or None,
                seed=args.seed, eval_every=args.eval_every, patience=args.patience, min_delta=args.min_delta,
                restore_best=args.restore_best, tol=args.tol, **evaluating, **writing,
            )
    except errors.DivergenceError:
        draw(trainer, args, baseline)
        say_diagnosis(trainer, args, worse=True)
        raise
    seconds, steps = time.perf_counter() - began, trainer.steps - before
    if not history.lr.any():
        say("warning", "the learning rate was 0 at every step: nothing was learnt")
    if history.stop_reason != "finished":
        say("stopped", f"{history.stop_reason}, after step {len(history):,}")
    if history.evaluations:
        restored = ", restored" if args.restore_best and not history.interrupted else ""
        say("best", f"validation {trainer.best_loss:.4f} after step {trainer.best_step:,}{restored}")
    # What was asked for is written first: what follows may take a while, and Ctrl-C ends it.
    if args.export:
        model.save_safetensors(args.export, tok)
    draw(trainer, args, baseline)
    if history.interrupted:             # whoever pressed Ctrl-C does not wait for an evaluation
        print(f"{'loss':12}{history.mean_loss():.4f}, the mean of the last {min(len(history), 100)} steps")
    elif not evaluate(trainer, train, val, args.seed, say):
        say_diagnosis(trainer, args, worse=True)
        raise FloatingPointError("the loss is no longer finite: the last steps led too far; try a smaller --lr")
    say("time", f"{seconds:.3f} s" + (f", {seconds / steps * 1e6:.1f} us a step" if steps else ""))
    for sample in model.generate(tok, args.sample, seed=args.seed, **options):
        print(as_sample(sample))
    say_diagnosis(trainer, args, ended_worse(history))
    return 130 if history.interrupted else 0


def evaluate(trainer, train, val, seed, say):
    """Print the losses, that of training on no more data than is held out; returns whether they are finite."""
    unit = "characters" if isinstance(train, str) else "documents"
    parts = sample_of(train, len(val), trainer.model.block_size, seed) if val else [train]
    n, of = sum(map(len, parts)), ""
    if n < len(train):
        of = f" (on {n:,} of {len(train):,} {unit})"
    say("evaluating", f"{n:,} {unit} trained on" + (f" and {len(val):,} held out" if val else ""))
    train_loss = val_loss = sum(map(trainer.evaluate, parts)) / len(parts)
    losses = f"train {train_loss:.4f}{of}"
    if val:
        val_loss = trainer.evaluate(val)
        losses += f", validation {val_loss:.4f}"
    print(f"{'loss':12}{losses} nats per token")
    if val:
        say("gap", f"{round(val_loss - train_loss, 4) + 0.0:+.4f} from train to validation")
    return math.isfinite(train_loss) and math.isfinite(val_loss)


def sample_of(train, n, block_size, seed):
    """At most n of the documents, or characters, drawn at random: a list of parts that count the same.

    A text gives up to ten stretches, one from each part of it, since one alone may be unlike the rest.
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


def check_files(args):
    """Refuse before the work files that would take each other's place, and what could not be written after it."""
    if args.plot:
        args.plot = with_ending(args.plot)
    flags = [flag for flag, (kind, *_) in FLAGS["files"].items() if kind is str and vars(args)[flag] is not None]
    files = [("--data", args.data or data.NAMES), *((f"--{flag}", vars(args)[flag]) for flag in flags)]
    if args.save:
        files.append(("the best of --save", best_path(args.save)))
    found = {}
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
            folder = os.path.dirname(os.path.realpath(path))
            if not os.path.isdir(folder):
                raise ValueError(f"{name} {path}: there is no folder {folder}")
            try:
                checkpoint.check_replaceable(path)
                if not os.access(folder, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
            except OSError as error:
                raise ValueError(f"{name} {path}: cannot be written: {error.strerror}") from None
    if args.export:
        models.safetensors()
    if args.plot:
        from .plot import check_format

        check_format(args.plot)


def identity(path):
    """What all names of a file (or its descriptor) have in common."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def as_argument(flag, value):
    """The flag as it would be typed: a list, empty where it has its default."""
    if value == ALL_FLAGS[flag][1] or value is None:
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", str(value)]


def draw(trainer, args, baseline):
    """The picture of a run, however it ended."""
    if args.plot and len(trainer.history):
        trainer.history.plot(args.plot, baseline=baseline)


def ended_worse(history):
    """Whether the loss at the end, the mean of the last tenth, is above the first."""
    n = max(10, len(history) // 10)
    return len(history) >= n and not history.mean_loss(n) <= history.loss[0]


def say_diagnosis(trainer, args, worse):
    """The diagnosis of a run that was asked for, or that is worth saying unasked."""
    if not args.diagnose and (args.quiet or not worse):
        return
    found = diagnose(trainer)
    if found or args.diagnose:
        for line in str(found).replace("\n    ", "\n" + 12 * " ").split("\n"):
            print(line if line.startswith(" ") else f"{'diagnosis':12}{line}")


def dry_run(trainer, train_data, args, say):
    """One step, described, and the configuration; nothing is written.  All of it together is a file for --config."""
    if hasattr(trainer.schedule, "for_steps"):      # the first step is one of the whole run
        trainer.schedule = trainer.schedule.for_steps(length_in_steps(args, train_data.n_examples))
    history = trainer.fit(train_data, steps=1, batch_size=args.batch_size, seed=args.seed)
    for name, shape in trainer.model.params.shapes.items():
        say("tensor", f"{name} {' x '.join(map(str, shape))}")
    copies = {0: "parameters and gradients", 1: "parameters, gradients and momentum"}
    copies = copies.get(len(trainer.optimizer.flats), "parameters, gradients and moments")
    say("memory", f"{trainer.model.num_params * 8 * (2 + len(trainer.optimizer.flats)) / 2**20:.2f} MiB of {copies}")
    say("optimizer", repr(trainer.optimizer))
    step = f"loss {history.loss[0]:.4f}, norm {history.norm[0]:.4f}, {history.predictions} predictions"
    print(comment(f"{'step':12}{step}"))
    print("\n# The whole configuration, as --config reads it")
    for name, flags in FLAGS.items():
        print(f"# {name}")
        for flag in flags:
            value = vars(args)[flag.replace("-", "_")]
            if value is not None and flag not in ("config", "dry-run"):
                print(f"{flag} = {toml(flag, value)}")
    return 0


def comment(line):
    """The line as a comment of TOML, which holds no control characters: the rest of the alphabets goes the same way."""
    return f"# {line.encode('unicode_escape').decode()}"


def toml(flag, value):
    """A value as TOML writes it, in ASCII, since it is read as UTF-8 whatever the terminal's encoding is."""
    if not isinstance(value, str):
        return json.dumps(value)            # whose numbers and truth values are TOML's too
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"--{flag} {value!r}: is no Unicode text, which a configuration has to be") from None
    plain = (c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
    return f'"{"".join(plain)}"'


def find_lr(trainer, train_data, args):
    """The range test, in ten lines."""
    found = lr_find(trainer, train_data, batch_size=args.batch_size, seed=args.seed)
    last = len(found.lrs) - 1
    for i in sorted({last * k // 10 for k in range(11)}):
        print(f"{'lr':12}{found.lrs[i]:.1e}  loss {found.losses[i]:.4f} (smoothed)")
    hint = "none: the loss never fell" if found.suggestion is None else f"--lr {found.suggestion:.2g}"
    print(f"{'suggestion':12}{hint} ({found.stop_reason} after {len(found.lrs)} steps)")
    return 0


def resumed_arguments(args, given):
    """The arguments of the checkpoint, under those that a resumed run may change."""
    refused = given - RESUMABLE
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
    # It may come from somebody else: it is read like a configuration, and does not choose which files are written, but
    # for going on with itself, under the name that the command line has for it.
    given = {flag.replace("-", "_"): vars(args)[flag.replace("-", "_")] for flag in {*given, "config", "resume"}}
    stored = {name: value for name, value in stored.items() if value is not None and name not in given}
    if "steps" in given:
        stored.pop("epochs", None)
    for flag in ("save", "export", "log", "plot", "tensorboard"):
        path = stored.pop(flag, None)
        if flag == "save" and path and identity(str(path)) == identity(args.resume):
            stored["save"] = args.resume
            if os.path.islink(best := best_path(args.resume)):
                raise ValueError(f"{best} is a link: say --save {args.resume} to write what it leads to")
        elif path:
            print(f"fastloop-train: not writing to {path} again; say --{flag} {path} to do so", file=sys.stderr)
    parser = make_parser()
    parser.source = f"{args.resume}: "
    stored = parser.parse_args(table_as_arguments(stored, args.resume))
    if stored.epochs is not None:
        stored.steps = None
    return argparse.Namespace(**{**vars(stored), **given})


def lengthen(trainer, steps, path):
    """Make a run that was loaded from path `steps` long, if they are given; returns how long it was."""
    if trainer._run is None:
        raise errors.CheckpointError(f"{path}: holds no run to go on with")
    before = trainer._run.steps
    if steps is not None:
        if steps < before:
            raise ValueError(f"--steps {steps}: the run has {before}, and when it is resumed can only get more")
        trainer._run.steps = steps
    return before


def main(argv=None):
    """Run the command; returns the exit status: 0, 1 diverged, 2 bad input, 130 Ctrl-C, 141 closed pipe."""
    prog = "fastloop-train"
    open_standard_streams()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.FastloopWarning)     # `run` says it in its own way
            status = run(*parse(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
        return 141
    except (errors.DivergenceError, FloatingPointError) as error:
        return complain(prog, error, 1)
    except (errors.FastloopError, ValueError, OSError, LookupError, OverflowError, MemoryError, ImportError) as error:
        return complain(prog, error, 2)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    return status


def open_standard_streams():
    """Where a standard stream is closed (`>&-`) nothing is said; no other file may get its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))       # noqa: SIM115 -- for as long as the process lives


def complain(prog, error, status):
    """Say what is wrong in one line on stderr."""
    if isinstance(error, OSError) and error.filename is not None:
        error = f"{error.filename}: {error.strerror}"
    print(f"{prog}: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        silence_stdout()
    return status


def silence_stdout():
    """Let go of what cannot be written, or Python complains of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
