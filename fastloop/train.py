"""The command `python -m fastloop.train`: reads arguments, prints what happens.  No training logic lives here."""

import argparse
import os
import sys
import time

from . import config, data, errors, models, optim, schedules, tokenizer
from .trainer import Trainer


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


def make_parser():
    parser = Parser(
        prog="fastloop-train",
        description="Train a small character model on the lines of a file, and sample from it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="FILE", help="documents, one a line (default: 5,163 embedded first names)")
    group.add_argument("--encoding", default="utf-8", help="of the file")
    group.add_argument("--val-fraction", type=float, default=0.1, metavar="F", help="share of documents held out")
    group = parser.add_argument_group("model")
    group.add_argument("--n-embd", type=at_least(1), default=16, metavar="D", help="width of the embeddings")
    group.add_argument("--block-size", type=at_least(1), default=8, metavar="T", help="predictions to cut to")
    group.add_argument("--init-std", type=at_least(0, float), default=0.08, metavar="S", help="of the start weights")
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=at_least(1), default=1000, metavar="N", help="training steps")
    group.add_argument("--batch-size", type=at_least(1), default=1, metavar="B", help="documents a step")
    group.add_argument("--shuffle", action="store_true", help="a new order of the documents each epoch")
    group.add_argument("--lr", type=float, default=0.01, help="learning rate at the start; it falls linearly to 0")
    group.add_argument("--beta1", type=float, default=0.85, help="decay of Adam's first moment")
    group.add_argument("--beta2", type=float, default=0.99, help="decay of Adam's second moment")
    group.add_argument("--eps", type=float, default=1e-8, help="added to Adam's denominator")
    group.add_argument("--clip-norm", type=float, metavar="X", help="largest global gradient norm (default: any)")
    group.add_argument("--seed", type=at_least(0), default=42, help="of weights, split, order and samples")
    group.add_argument("--threads", type=at_least(1), metavar="N", help="at most (default: the CPUs at hand)")
    group = parser.add_argument_group("output")
    group.add_argument("--log-every", type=at_least(0), default=100, metavar="N", help="steps a line; 0: none")
    group.add_argument("--sample", type=at_least(0), default=10, metavar="N", help="documents to sample at the end")
    group.add_argument("--temperature", type=at_least(0, float), default=0.8, metavar="X", help="of the samples")
    group.add_argument("--quiet", action="store_true", help="print the losses and the samples only")
    return parser


class StepLines:
    """Prints a line at each log: over itself on a terminal, one below the other into a file."""

    def __init__(self, steps):
        self.steps = steps
        self.terminal = sys.stdout.isatty()
        self.before = (0, 0, 0.0)       # steps, predictions and seconds at the last line

    def on_log(self, trainer):
        history = trainer.history
        now = (len(history), history.predictions, history.seconds[-1])
        steps, predictions, seconds = (a - b for a, b in zip(now, self.before, strict=True))
        self.before = now
        line = (
            f"step {now[0]:>{len(f'{self.steps:,}')},}/{self.steps:,}  loss {history.mean_loss(steps):.4f}  "
            f"lr {history.lr[-1]:.6f}  norm {history.norm[-1]:.3f}  {predictions / max(seconds, 1e-9):,.0f} tokens/s"
        )
        if self.terminal:
            print(f"\r\x1b[K{line}", end="", flush=True)
        else:
            print(line)

    def on_end(self, trainer):
        if self.terminal:
            print(flush=True)


def run(args):
    def say(name, text):
        if not args.quiet:
            print(f"{name:12}{text}")

    if args.threads is not None:
        config.set_num_threads(args.threads)
    docs = data.load_docs(args.data, args.encoding)
    train, val = data.split_docs(docs, args.val_fraction, args.seed)
    tok = tokenizer.CharTokenizer(docs)
    model = models.BigramLM(tok.vocab_size, args.n_embd, args.block_size, args.seed, args.init_std)
    adam = optim.Adam(lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps)
    trainer = Trainer(model, adam, tokenizer=tok, schedule=schedules.linear(), clip_norm=args.clip_norm)
    train_data, cut = trainer.prepare(train)
    if val:
        val_data, val_cut = trainer.prepare(val)
        cut += val_cut
    baseline = data.bigram_baseline(train, val or None, tokenizer=tok, block_size=args.block_size)

    split = f"{len(train):,} to train on, {len(val):,} held out (seed {args.seed})" if val else "all to train on"
    say("documents", f"{len(docs):,}: {split}")
    say("cut", f"{cut:,} documents, to {args.block_size} predictions")
    say("vocabulary", f"{tok.vocab_size}: {tok.vocab_size - 1} characters and BOS")
    say("parameters", f"{model.num_params:,}")
    say("baseline", f"{baseline:.4f} nats per token (bigram counts, {'held out' if val else 'on the same documents'})")
    began = time.perf_counter()
    history = trainer.fit(
        train_data, steps=args.steps, batch_size=args.batch_size, shuffle=args.shuffle, seed=args.seed,
        log_every=0 if args.quiet else args.log_every, callbacks=[StepLines(args.steps)],
    )
    seconds = time.perf_counter() - began
    if history.interrupted:
        say("interrupted", f"after step {len(history):,}")
    losses = f"train {trainer.evaluate(train_data):.4f}"
    if val:
        losses += f", validation {trainer.evaluate(val_data):.4f}"
    print(f"{'loss':12}{losses} nats per token")
    say("time", f"{seconds:.3f} s, {seconds / max(len(history), 1) * 1e6:.1f} us a step")
    for name in model.generate(tok, args.sample, args.temperature, args.seed):
        print(f"{'sample':12}{name}")
    return 130 if history.interrupted else 0


def main(argv=None):
    """Run the command; returns the exit status: 0, 1 diverged, 2 bad input, 130 Ctrl-C, 141 closed pipe."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())     # or Python complains at exit
        return 141
    except errors.DivergenceError as error:
        return complain(parser, error, 1)
    except (errors.FastloopError, ValueError, OSError, LookupError, OverflowError, MemoryError) as error:
        return complain(parser, error, 2)
    except KeyboardInterrupt:
        return 130
    return status


def complain(parser, error, status):
    """Say what is wrong in one line on stderr."""
    if isinstance(error, OSError) and error.filename is not None:
        error = f"{error.filename}: {error.strerror}"
    print(f"{parser.prog}: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
