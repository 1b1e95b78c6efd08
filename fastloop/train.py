"""The command `python -m fastloop.train`: reads arguments, prints what happens.  No training logic lives here."""

import argparse
import os
import sys
import time

from . import checkpoint, config, data, errors, models, optim, schedules, tokenizer
from .callbacks import JsonLog, Progress, TensorBoard
from .diagnose import diagnose
from .trainer import Trainer

SCHEDULES = ("constant", "linear", "cosine", "exponential", "one_cycle", "warmup_stable_decay")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def at_least(low, kind=int):
    """An argparse type: a number of at least `low`."""

    def parse(text):
        value = kind(text)
        if not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {low}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


count, size, number = at_least(0), at_least(1), at_least(0, float)

# Group -> flag -> (type, or the choices, or bool for a switch; default; help)
FLAGS = {
    "data": {
        "data": (str, None, "text file (default: 5,163 embedded first names)"),
        "format": (("lines", "text"), "lines", "a document a line, or one text learnt in windows"),
        "encoding": (str, "utf-8", "of the file"),
        "val-fraction": (float, 0.1, "share held out for validation"),
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
        "epochs": (size, None, "times through the data, instead of --steps"),
        "batch-size": (size, 1, "documents a batch"),
        "grad-accum": (size, 1, "batches a step"),
        "shuffle": (bool, False, "a new order of the documents each epoch"),
        "optimizer": (("adam", "adamw", "sgd"), "adam", "how to update"),
        "lr": (float, 0.01, "learning rate, before the schedule"),
        "schedule": (SCHEDULES, "linear", "of the learning rate"),
        "warmup": (count, 0, "steps of linear warm-up in front"),
        "beta1": (float, 0.85, "decay of Adam's first moment"),
        "beta2": (float, 0.99, "decay of Adam's second moment"),
        "eps": (float, 1e-8, "added to Adam's denominator"),
        "momentum": (float, 0.0, "of sgd"),
        "weight-decay": (float, 0.0, "decoupled with adamw"),
        "clip-norm": (float, None, "largest global gradient norm (default: any)"),
        "clip-value": (float, None, "largest magnitude of a single gradient (default: any)"),
        "seed": (count, 42, "of weights, split, order and samples"),
        "threads": (size, None, "at most so many (default: the CPUs at hand)"),
    },
    "validation": {
        "eval-every": (size, None, "steps from evaluation to evaluation (default: at the end)"),
        "patience": (size, None, "stop after so many evaluations without improvement"),
        "min-delta": (number, 0.0, "what counts as improvement"),
        "restore-best": (bool, False, "end with the parameters of the best evaluation"),
        "tol": (number, None, "stop when an epoch's mean loss changes by less"),
    },
    "files": {
        "config": (str, None, "TOML file whose keys are these flags"),
        "save": (str, None, "checkpoint, and beside it the best (run.npz, run.best.npz)"),
        "save-every": (size, None, "steps from checkpoint to checkpoint (default: at the end)"),
        "resume": (str, None, "checkpoint to go on from"),
        "export": (str, None, "the trained parameters as safetensors (extra: safetensors)"),
        "log": (str, None, "JSON lines of the run"),
        "plot": (str, None, "picture of the run (extra: plot)"),
        "tensorboard": (str, None, "folder of TensorBoard events (extra: tensorboard)"),
    },
    "output": {
        "log-every": (count, 100, "steps from line to line; 0 for none"),
        "sample": (count, 10, "documents to sample at the end"),
        "sample-every": (size, None, "steps from one sample to the next during training"),
        "temperature": (number, 0.8, "of the samples; 0 takes the most probable"),
        "top-k": (size, None, "sample from so many most probable tokens"),
        "top-p": (float, None, "sample from the fewest with this probability"),
        "prompt": (str, "", "how the samples begin"),
        "diagnose": (bool, False, "say what looks wrong with the run"),
        "dry-run": (bool, False, "take one step, describe it, write nothing"),
        "overfit-one-batch": (bool, False, "train on the first batch alone: its loss should fall"),
        "quiet": (bool, False, "print the losses and the samples only"),
    },
}
ALL_FLAGS = {flag: entry for flags in FLAGS.values() for flag, entry in flags.items()}

# What a resumed run may change: where it writes and what it prints.
RESUMABLE = {*FLAGS["output"], *FLAGS["files"], "threads", "data"} - {"config", "dry-run", "overfit-one-batch"}


def make_parser(**options):
    parser = Parser(
        prog="fastloop-train",
        description="Train a small language model on a text file, and sample from it.",
        allow_abbrev=False, **options,
    )
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
                metavar = "X" if kind in (float, number) else "N"
                if kind is str:
                    metavar = "TEXT" if flag in ("prompt", "encoding") else "FILE"
                group.add_argument(f"--{flag}", type=kind, metavar=metavar, default=default, help=text)
    return parser


def parse(argv):
    """The arguments, with those of --config before those of the command line; and which flags were given."""
    parser = make_parser()
    args = parser.parse_args(argv)
    from_file = [] if args.config is None else read_config(args.config)
    args = parser.parse_args([*from_file, *argv])
    given = make_parser(argument_default=argparse.SUPPRESS)
    for action in given._actions:
        action.default = argparse.SUPPRESS
    return args, {name.replace("_", "-") for name in vars(given.parse_args([*from_file, *argv]))}


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
    arguments = []
    for key, value in table.items():
        flag = key.replace("_", "-")
        if flag not in ALL_FLAGS or flag == "config":
            import difflib

            near = difflib.get_close_matches(flag, ALL_FLAGS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise errors.DataError(f"{path}: {key!r} is not a flag of this command{hint}")
        if isinstance(value, bool) != (ALL_FLAGS[flag][0] is bool) or isinstance(value, (list, dict)):
            raise errors.DataError(f"{path}: {key} = {value!r} is not what --{flag} takes")
        arguments.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag}={value}")
    return arguments


class Samples:
    """Prints a sample every so many steps, from a random stream of its own."""

    def __init__(self, every, seed, options):
        self.every, self.seed, self.options, self.next = every, seed, options, every

    def on_log(self, trainer):
        done = len(trainer.history)
        if done >= self.next:
            self.next = done - done % self.every + self.every
            seed = self.seed + done         # so that a resumed run says the same
            (text,) = trainer.model.generate(trainer.tokenizer, 1, seed=seed, **self.options)
            print(f"\r\x1b[K{'sample':12}{text}" if sys.stdout.isatty() else f"{'sample':12}{text}")


def make_trainer(args, docs):
    tok = tokenizer.CharTokenizer([docs] if isinstance(docs, str) else docs)
    gpt = args.model == "gpt"
    block_size = args.block_size or (16 if gpt else 8)
    common = {"n_embd": args.n_embd, "block_size": block_size, "seed": args.seed, "init_std": args.init_std}
    if gpt:
        model = models.GPT(tok.vocab_size, n_head=args.n_head, n_layer=args.n_layer, **common)
    else:
        model = models.BigramLM(tok.vocab_size, **common)
    if args.optimizer == "sgd":
        optimizer = optim.SGD(lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    else:
        make = optim.AdamW if args.optimizer == "adamw" else optim.Adam
        betas = (args.beta1, args.beta2)
        optimizer = make(lr=args.lr, betas=betas, eps=args.eps, weight_decay=args.weight_decay)
    if args.schedule == "warmup_stable_decay":
        fifth = max(1, args.steps // 5)
        schedule = schedules.warmup_stable_decay(args.warmup or 1, fifth)
    else:
        schedule = getattr(schedules, args.schedule)()
        schedule = schedules.warmup(args.warmup, schedule) if args.warmup else schedule
    return Trainer(
        model, optimizer, tokenizer=tok, schedule=schedule, clip_norm=args.clip_norm, clip_value=args.clip_value,
        grad_accum=args.grad_accum,
    )


def load_data(args):
    """(train, validation): two lists of documents, or two texts."""
    if args.format == "text":
        if args.data is None:
            raise ValueError("--format text needs a file: --data FILE")
        text = data.load_text(args.data, args.encoding)
        if not 0.0 <= args.val_fraction < 1.0:
            raise ValueError(f"fraction = {args.val_fraction} is outside [0, 1)")
        first = len(text) - int(len(text) * args.val_fraction)
        return text[:first], text[first:]
    return data.split_docs(data.load_docs(args.data, args.encoding), args.val_fraction, args.seed)


def make_callbacks(args, options):
    callbacks = [] if args.quiet else [Progress()]
    if args.sample_every:
        callbacks.append(Samples(args.sample_every, args.seed, options))
    if args.log:
        callbacks.append(JsonLog(args.log))
    if args.tensorboard:
        callbacks.append(TensorBoard(args.tensorboard))
    return callbacks


def run(args, given):
    def say(name, text):
        if not args.quiet:
            print(f"{name:12}{text}")

    if args.resume:
        args = resumed_arguments(args, given)
    if args.threads is not None:
        config.set_num_threads(args.threads)
    train, val = load_data(args)
    if args.overfit_one_batch:
        train, val = train[: args.batch_size * args.grad_accum] if isinstance(train, list) else train, None
    trainer = Trainer.load(args.resume) if args.resume else make_trainer(args, train + (val or type(train)()))
    model, tok = trainer.model, trainer.tokenizer
    trainer.notes = {"arguments": vars(args)}
    train_data, cut = trainer.prepare(train)
    val_data = None
    if val:
        val_data, val_cut = trainer.prepare(val)
        cut += val_cut
    if not val and (args.patience or args.restore_best):
        raise ValueError("--patience and --restore-best need documents held out: --val-fraction")
    baseline = data.bigram_baseline(train, val or None, tokenizer=tok, block_size=model.block_size)

    changed = [f"--{flag} {vars(args)[flag.replace('-', '_')]}" for flag in ALL_FLAGS if flag in given]
    if changed:
        say("arguments", " ".join(changed))
    unit = "characters" if isinstance(train, str) else "documents"
    split = f"{len(train):,} to train on, {len(val):,} held out" if val else "all to train on"
    split += f" (seed {args.seed})" if val and unit == "documents" else ""
    say(unit, f"{len(train) + len(val or ()):,}: {split}")
    if unit == "documents":
        say("cut", f"{cut:,} documents, to {model.block_size} predictions")
    say("vocabulary", f"{tok.vocab_size}: {tok.vocab_size - 1} characters and BOS")
    say("parameters", f"{model.num_params:,}")
    say("baseline", f"{baseline:.4f} nats per token (bigram counts, {'held out' if val else 'on the same data'})")
    if args.dry_run:
        return dry_run(trainer, train_data, args, say)

    options = {
        "temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "prompt": args.prompt,
    }
    writing = {"save": args.save, "save_every": args.save_every, "callbacks": make_callbacks(args, options)}
    writing["log_every"] = args.log_every or args.sample_every or 0
    evaluating = {"validation": val_data if args.eval_every or args.patience or args.restore_best else None}
    began = time.perf_counter()
    before = trainer.steps
    if args.resume:
        history = trainer.resume(train_data, **evaluating, **writing)
    else:
        length = {"epochs": args.epochs} if args.epochs else {"steps": args.steps}
        history = trainer.fit(
            train_data, **length, batch_size=args.batch_size, shuffle=args.shuffle or None, seed=args.seed,
            eval_every=args.eval_every, patience=args.patience, min_delta=args.min_delta,
            restore_best=args.restore_best, tol=args.tol, **evaluating, **writing,
        )
    seconds = time.perf_counter() - began
    if history.stop_reason != "finished":
        say("stopped", f"{history.stop_reason}, after step {len(history):,}")
    train_loss = trainer.evaluate(train_data)
    losses = f"train {train_loss:.4f}"
    if val:
        val_loss = trainer.evaluate(val_data)
        losses += f", validation {val_loss:.4f}"
    print(f"{'loss':12}{losses} nats per token")
    if val:
        say("gap", f"{val_loss - train_loss:+.4f} from train to validation")
    say("time", f"{seconds:.3f} s, {seconds / max(trainer.steps - before, 1) * 1e6:.1f} us a step")
    for text in model.generate(tok, args.sample, seed=args.seed, **options):
        print(f"{'sample':12}{text}")
    if args.export:
        model.save_safetensors(args.export)
    if args.plot:
        history.plot(args.plot, baseline=baseline)
    if args.diagnose:
        findings = diagnose(trainer)
        for finding in findings:
            print(f"{'diagnosis':12}{finding}")
        if not findings:
            print(f"{'diagnosis':12}nothing found")
    return 130 if history.interrupted else 0


def dry_run(trainer, train_data, args, say):
    """One step, described; nothing is written."""
    history = trainer.fit(train_data, steps=1, batch_size=args.batch_size, seed=args.seed)
    for name, shape in trainer.model.params.shapes.items():
        say("tensor", f"{name} {' x '.join(map(str, shape))}")
    say("memory", f"{trainer.model.num_params * 32 / 2**20:.2f} MiB of parameters, gradients and moments")
    say("optimizer", repr(trainer.optimizer))
    print(f"{'step':12}loss {history.loss[0]:.4f}, norm {history.norm[0]:.4f}, {history.predictions} predictions")
    return 0


def resumed_arguments(args, given):
    """The arguments of the checkpoint, under those that a resumed run may change."""
    refused = given - RESUMABLE
    if refused:
        raise ValueError(f"--{min(refused)}: a resumed run keeps its own; leave it out")
    _, meta = checkpoint.read(args.resume)
    try:
        stored = meta["notes"]["arguments"]
    except (KeyError, TypeError):
        raise errors.CheckpointError(f"{args.resume}: was not saved by this command; resume it from Python") from None
    kept = {name: value for name, value in stored.items() if name.replace("_", "-") not in given}
    return argparse.Namespace(**{**vars(args), **kept, "resume": args.resume})


def main(argv=None):
    """Run the command; returns the exit status: 0, 1 diverged, 2 bad input, 130 Ctrl-C, 141 closed pipe."""
    prog = "fastloop-train"
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = run(*parse(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())     # or Python complains at exit
        return 141
    except errors.DivergenceError as error:
        return complain(prog, error, 1)
    except (errors.FastloopError, ValueError, OSError, LookupError, OverflowError, MemoryError, ImportError) as error:
        return complain(prog, error, 2)
    except KeyboardInterrupt:
        return 130
    return status


def complain(prog, error, status):
    """Say what is wrong in one line on stderr."""
    if isinstance(error, OSError) and error.filename is not None:
        error = f"{error.filename}: {error.strerror}"
    print(f"{prog}: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
