"""The flags of `python -m fastloop.train`: the table of them, and how text from the command line or a file becomes
checked values.  What is done with the values is in train.py.
"""

import argparse
import inspect
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from . import __version__, configfile, schedules
from ._check import nearest
from .data import load_docs
from .errors import DataError
from .fit import LOG_EVERY
from .models import GPT, BigramLM
from .optim import SGD, Adam, AdamW
from .trainer import Trainer

MODELS: dict[str, Any] = {"bigram": BigramLM, "gpt": GPT}
OPTIMIZERS: dict[str, Any] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
SCHEDULES = (
    "constant", "linear", "cosine", "exponential", "one_cycle", "warmup_stable_decay", "inverse_sqrt", "step_decay"
)
# The argument of a schedule that --decay-steps gives.
DECAY_STEPS = {"warmup_stable_decay": "decay", "step_decay": "every", "inverse_sqrt": "timescale"}


def default_of(function: Callable[..., Any], argument: str) -> Any:
    """The default that an argument has in the API."""
    return inspect.signature(function).parameters[argument].default


# What a flag's text becomes.  The names are those of messages: "invalid whole number value: 'x'".

def at_least(low: int, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """A number of at least `low`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {low}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def share(text: str) -> float:
    """A number in [0, 1)."""
    if not 0.0 <= float(text) < 1.0:
        raise argparse.ArgumentTypeError(f"{text} is outside [0, 1)")
    return float(text)


share.__name__ = "number"
count, size, number = at_least(0), at_least(1), at_least(0, float)


class Flag(NamedTuple):
    """A row of the table."""

    kind: Any                   # a function of the text; or the words to choose from; or bool, for a switch
    default: Any
    help: str
    used_by: Mapping[str, Iterable[str]] = {}       # the flag that decides, and with which of its values this is used


# The default job is the course's, so it differs from the API's defaults in these, and only in these.
COURSE = {
    "steps": 1000,          # fit without a length takes one epoch
    "lr": 0.01,             # Adam's own 0.001 is for larger models; 992 parameters would hardly move in 1,000 steps
    "beta1": 0.85,          # Adam's own 0.9 and 0.999 average over more steps than so short a run should
    "beta2": 0.99,
    "schedule": "linear",   # the learning rate of a Trainer's own is constant
    "seed": 42,             # of everything that is drawn; in the API weights have 42, the order of the documents 0
    "temperature": 0.8,     # generate's own 1.0 draws from the model's probabilities as they are
    "val-fraction": 0.1,    # fit alone holds nothing out
}
BLOCK_SIZES = {name: default_of(model, "block_size") for name, model in MODELS.items()}
DECAYS = {name: default_of(optimizer, "weight_decay") for name, optimizer in OPTIMIZERS.items()}
ENDS = {
    name: default_of(getattr(schedules, name), "end")
    for name in SCHEDULES if "end" in inspect.signature(getattr(schedules, name)).parameters
}

FOR_GPT = {"model": ["gpt"]}
FOR_ADAM, FOR_SGD = {"optimizer": ["adam", "adamw"]}, {"optimizer": ["sgd"]}
FOR_TEXT, FOR_LINES = {"format": ["text"]}, {"format": ["lines"]}

FLAGS = {
    "data": {
        "data": Flag(str, None, "text file (default: 5,163 embedded first names)"),
        "format": Flag(("lines", "text"), "lines", "a document a line, or one text learnt in windows"),
        "encoding": Flag(str, default_of(load_docs, "encoding"), "encoding of the file"),
        "val-fraction": Flag(share, COURSE["val-fraction"], "share held out for validation"),
    },
    "model": {
        "model": Flag(tuple(MODELS), "bigram", "what to train"),
        "n-embd": Flag(size, default_of(GPT, "n_embd"), "width of the embeddings"),
        "block-size": Flag(size, None, "predictions a document is cut to (default: {bigram}; gpt {gpt})"
                           .format(**BLOCK_SIZES)),
        "n-layer": Flag(size, default_of(GPT, "n_layer"), "layers of a gpt", FOR_GPT),
        "n-head": Flag(size, default_of(GPT, "n_head"), "attention heads of a gpt", FOR_GPT),
        "init-std": Flag(number, default_of(GPT, "init_std"), "standard deviation of the initial weights"),
        "dtype": Flag(("float64", "float32"), default_of(GPT, "dtype"), "precision of the parameters and of what is "
                      "computed; losses are float64"),
    },
    "training": {
        "steps": Flag(size, COURSE["steps"], "training steps"),
        "epochs": Flag(size, None, "times through the data, in place of --steps"),
        "batch-size": Flag(size, default_of(Trainer.fit, "batch_size"), "documents in a batch"),
        "grad-accum": Flag(size, default_of(Trainer, "grad_accum"), "batches whose gradients a step averages"),
        "shuffle": Flag(bool, None, "take the documents in a new order each epoch (default: with --data)", FOR_LINES),
        "optimizer": Flag(tuple(OPTIMIZERS), "adam", "rule by which the parameters are updated"),
        "lr": Flag(float, COURSE["lr"], "learning rate, before the schedule"),
        "schedule": Flag(SCHEDULES, COURSE["schedule"], "how the learning rate falls"),
        "warmup": Flag(count, 0, "steps of linear warm-up before the schedule"),
        "lr-end": Flag(number, None, "where linear, cosine, exponential and warmup_stable_decay end, as a share of "
                       f"--lr (default: {ENDS['linear']:g}; exponential {ENDS['exponential']:g})", {"schedule": ENDS}),
        "decay-steps": Flag(size, None, "length of the decay that ends warmup_stable_decay, steps between two drops of "
                            "step_decay (each to a tenth), timescale of inverse_sqrt (default: a fifth of the run)",
                            {"schedule": DECAY_STEPS}),
        "beta1": Flag(float, COURSE["beta1"], "decay of Adam's first moment", FOR_ADAM),
        "beta2": Flag(float, COURSE["beta2"], "decay of Adam's second moment", FOR_ADAM),
        "eps": Flag(float, default_of(Adam, "eps"), "added to Adam's denominator", FOR_ADAM),
        "momentum": Flag(float, default_of(SGD, "momentum"), "momentum of sgd", FOR_SGD),
        "nesterov": Flag(bool, default_of(SGD, "nesterov"), "Nesterov momentum", FOR_SGD),
        "weight-decay": Flag(float, None, "decoupled with adamw (default: {adam:g}; adamw {adamw:g})".format(**DECAYS)),
        "no-decay": Flag(str, "", "tensors without weight decay, such as wpe,lm_head"),
        "clip-norm": Flag(float, None, "largest global gradient norm (default: no clipping)"),
        "clip-value": Flag(float, None, "largest magnitude of a single gradient (default: no clipping)"),
        "seed": Flag(count, COURSE["seed"], "seed of the weights, split, order and samples"),
        "threads": Flag(size, None, "threads to use at most (default: one for each CPU)"),
    },
    "validation": {
        "eval-every": Flag(size, None, "steps between evaluations (default: a tenth of --steps, or an epoch with "
                           "--epochs, if a flag below or a file needs them; else only at the end)"),
        "patience": Flag(size, None, "stop after this many evaluations without improvement"),
        "min-delta": Flag(number, default_of(Trainer.fit, "min_delta"), "least decrease that counts as improvement"),
        "restore-best": Flag(bool, default_of(Trainer.fit, "restore_best"),
                             "end with the parameters of the best evaluation"),
        "tol": Flag(number, None, "stop when an epoch's mean loss changes by less than this"),
    },
    "files": {
        "config": Flag(str, None, "TOML file whose keys are these flags"),
        "save": Flag(str, None, "checkpoint, and beside it that of the best evaluation (run.npz, run.best.npz)"),
        "save-every": Flag(size, None, "steps between checkpoints (default: only at the end)"),
        "resume": Flag(str, None, "checkpoint of a run to continue, bit for bit; if the run saved to this file, it "
                       "goes on saving to it; of other flags only files, output and a larger --steps may be given"),
        "export": Flag(str, None, "the trained parameters as safetensors (extra: safetensors)"),
        "log": Flag(str, None, "log of the run in JSON lines, to a file (appended to) or a pipe"),
        "plot": Flag(str, None, "picture of the run (extra: plot)"),
        "tensorboard": Flag(str, None, "folder of TensorBoard events (extra: tensorboard)"),
    },
    "output": {
        "log-every": Flag(count, LOG_EVERY, "steps between lines; 0 for none"),
        "sample": Flag(count, 10, "documents to sample at the end"),
        "sample-every": Flag(size, None, "steps between samples during training"),
        "length": Flag(size, 200, "characters to sample with --format text", FOR_TEXT),
        "temperature": Flag(number, COURSE["temperature"], "of the samples; 0 takes the most probable token"),
        "top-k": Flag(size, None, "sample from this many most probable tokens only"),
        "top-p": Flag(float, None, "sample from the fewest tokens that together have this probability"),
        "prompt": Flag(str, default_of(GPT.generate, "prompt"), "how the samples begin"),
        "diagnose": Flag(bool, False, "say what looks wrong with the run"),
        "dry-run": Flag(bool, False, "take one step, print the whole configuration as a file for --config, write "
                        "nothing"),
        "lr-find": Flag(bool, False, "try learning rates from small to large instead of training, and suggest one"),
        "overfit-one-batch": Flag(bool, False, "train on the first batch alone: its loss should fall"),
        "quiet": Flag(bool, False, "print the losses and the samples only"),
    },
}
ALL_FLAGS = {name: flag for flags in FLAGS.values() for name, flag in flags.items()}

# What holds a path, and in --help what stands for another kind of text.
PATHS = {"data", *(name for name, flag in FLAGS["files"].items() if flag.kind is str)}
METAVARS = {"prompt": "TEXT", "encoding": "NAME", "no-decay": "NAMES", "tensorboard": "FOLDER"}

# What a resumed run may change: where it writes, what it prints, and how long it is.
RESUMABLE = {*FLAGS["output"], *FLAGS["files"], "threads", "data", "steps"}
RESUMABLE -= {"config", "dry-run", "lr-find", "overfit-one-batch"}

EPILOG = """\
examples:
  %(prog)s --model gpt --batch-size 16 --steps 2000
  %(prog)s --data names.txt --eval-every 100 --patience 5 --restore-best
  %(prog)s --data book.txt --format text --model gpt --block-size 64 --n-embd 64
  %(prog)s --steps 100000 --save run.npz      then, after Ctrl-C:
  %(prog)s --resume run.npz                   or, for more of it, with --steps 200000

exit status: 0 done, 1 the loss was no longer finite, 2 bad input, 130 Ctrl-C, 141 closed pipe
"""


def key(flag: str) -> str:
    """The flag's name as a name of Python: --n-embd is args.n_embd."""
    return flag.replace("-", "_")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the file that the arguments come from."""

    source = ""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found = super().parse_args(args, namespace)
        for name, value in vars(found).items():
            flag = name.replace("_", "-")
            # [] is what some versions of argparse make of --save=--; an empty variable of a script gives "".
            if value == [] or (value == "" and flag in PATHS):
                self.error(f"argument --{flag}: expected one argument")
            if flag in PATHS and "\0" in (value or ""):
                self.error(f"argument --{flag}: {value!r} holds a NUL character, which no file's name does")
        return found

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: -"):
            flag = re.split("[ =]", message.removeprefix("unrecognized arguments: "))[0]
            message = f"{flag} is not a flag{did_you_mean(flag.lstrip('-'), '--')}"
        self.exit(2, f"{self.prog}: error: {self.source}{message} (--help lists the flags)\n")


def did_you_mean(flag: str, dashes: str = "") -> str:
    """The end of a sentence that names the flag most like this one, if any is."""
    near = nearest(key(flag), [key(name) for name in ALL_FLAGS])
    return f"; did you mean {dashes}{near.replace('_', '-')}?" if near else ""


def make_parser(only_given: bool = False) -> Parser:
    """The parser of all flags; with only_given, of no defaults: what it returns holds the flags that were given."""
    parser = Parser(
        prog="fastloop-train",
        description="Train a small language model on a text file, and sample from it.", epilog=EPILOG,
        usage="%(prog)s [--flag value] ...", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastloop {__version__}")
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, flag in flags.items():
            silent = flag.default in (None, "") or flag.default is False
            text = flag.help if silent else f"{flag.help} (default: {flag.default})"
            options: dict[str, Any] = {"default": argparse.SUPPRESS if only_given else flag.default, "help": text}
            if flag.kind is bool:
                options["action"] = argparse.BooleanOptionalAction
            elif isinstance(flag.kind, tuple):
                options["choices"] = flag.kind
            else:
                word = "FILE" if flag.kind is str else "X" if flag.kind in (float, number, share) else "N"
                options |= {"type": flag.kind, "metavar": METAVARS.get(name, word)}
            group.add_argument(f"--{name}", **options)
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, set[str]]:
    """The arguments, with those of --config before those of the command line; and which flags were given."""
    parser, silent = make_parser(), make_parser(only_given=True)
    path = parser.parse_args(argv).config
    from_file = [] if path is None else as_arguments(configfile.read(path), path)
    given: list[dict[str, Any]] = []
    for parser.source, arguments in ((f"{path}: ", from_file), ("", argv)):
        parser.parse_args(arguments)            # alone, so that an error names its source
        given.append({name.replace("_", "-"): value for name, value in vars(silent.parse_args(arguments)).items()})
        if given[-1].keys() >= {"steps", "epochs"}:
            parser.error("steps and epochs: give only one of them")
    args = parser.parse_args([*from_file, *argv])
    if "steps" in given[1]:
        args.epochs = None          # of the file
    if args.epochs is not None:
        args.steps = None
    if args.resume is None:         # else the checkpoint has the rest of the arguments
        if args.save_every and not args.save:
            parser.error("--save-every needs a file: --save FILE")
        refuse_unused(args, given[0], path)
        refuse_unused(args, given[1])
    return args, {*given[0], *given[1]}


def parse_stored(table: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The arguments that a checkpoint holds, read as strictly as those of a file, by their names in Python."""
    parser = make_parser()
    parser.source = f"{path}: "
    args = parser.parse_args(as_arguments(table, path))
    if args.epochs is not None:
        args.steps = None
    return dict(vars(args))


def refuse_unused(args: argparse.Namespace, given: Mapping[str, Any], path: str | None = None) -> None:
    """Refuse a given flag that the chosen model, optimizer, schedule or format does not use.

    path: the file that gave them.  It may hold such a flag with its default: those of --dry-run hold them all.
    """
    parser = make_parser()
    parser.source = "" if path is None else f"{path}: "
    for name, value in given.items():
        flag = ALL_FLAGS[name]
        if path is not None and value == flag.default:
            continue
        for choice, users in flag.used_by.items():
            chosen = vars(args)[key(choice)]
            if chosen not in users:
                parser.error(f"--{name} does not go with --{choice} {chosen}; it is for {', '.join(users)}")


def as_arguments(table: Mapping[str, Any], path: str) -> list[str]:
    """The flags of the file at `path` as they would be typed; DataError for a key that is no flag."""
    arguments: list[str] = []
    keys: dict[str, str] = {}
    for name, value in table.items():
        flag = name.replace("_", "-")
        if flag == "config":
            raise DataError(f"{path}: {name!r} cannot stand in a file: one configuration does not read another")
        if flag not in ALL_FLAGS:
            raise DataError(f"{path}: {name!r} is not a flag of this command{did_you_mean(flag)}")
        if keys.setdefault(flag, name) != name:
            raise DataError(f"{path}: {keys[flag]!r} and {name!r} are the same flag: give only one of them")
        if isinstance(value, bool) != (ALL_FLAGS[flag].kind is bool) or isinstance(value, (list, dict)):
            raise DataError(f"{path}: {name} = {value!r} is not what --{flag} takes")
        arguments.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag}={value}")
    return arguments


def as_typed(args: argparse.Namespace) -> str:
    """The arguments that are not the defaults, as they would be typed."""
    words: list[str] = []
    for name, flag in ALL_FLAGS.items():
        value = vars(args)[key(name)]
        if value is None or value == flag.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def as_configuration(args: argparse.Namespace) -> str:
    """All arguments as a file for --config."""
    lines = ["# The whole configuration, as --config reads it"]
    for title, flags in FLAGS.items():
        lines.append(f"# {title}")
        for name in flags:
            value = vars(args)[key(name)]
            if value is not None and name not in ("config", "dry-run"):
                lines.append(configfile.entry(name, value))
    return "\n".join(lines)
