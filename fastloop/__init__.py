"""fastloop: small models trained on a CPU, exactly and fast, with every step open to inspection."""

from . import _command as _command  # the first, since it answers Ctrl-C while the others are imported
from . import callbacks, kernels, schedules
from .config import show_config
from .data import bigram_baseline, load_docs, load_text, split_docs
from .diagnose import diagnose
from .errors import CheckpointError, DataError, DivergenceError, FastloopError, FastloopWarning, OrderError
from .gradcheck import gradcheck
from .history import History
from .lr_find import lr_find
from .models import GPT, MLP, BigramLM, FunctionModel, LinearRegression, Model, SoftmaxRegression
from .optim import SGD, Adam, AdamW
from .params import Params
from .threads import get_num_threads, set_num_threads
from .tokenizer import CharTokenizer
from .trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "MLP",
    "SGD",
    "Adam",
    "AdamW",
    "BigramLM",
    "CharTokenizer",
    "CheckpointError",
    "DataError",
    "DivergenceError",
    "FastloopError",
    "FastloopWarning",
    "FunctionModel",
    "History",
    "LinearRegression",
    "Model",
    "OrderError",
    "Params",
    "SoftmaxRegression",
    "Trainer",
    "bigram_baseline",
    "callbacks",
    "diagnose",
    "get_num_threads",
    "gradcheck",
    "kernels",
    "load_docs",
    "load_text",
    "lr_find",
    "schedules",
    "set_num_threads",
    "show_config",
    "split_docs",
]
