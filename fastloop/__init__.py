"""fastloop: small models trained on a CPU, exactly and fast, with every step in sight."""

from . import schedules
from .config import get_num_threads, set_num_threads, show_config
from .data import bigram_baseline, load_docs, split_docs
from .errors import DataError, DivergenceError, FastloopError, OrderError
from .history import History
from .models import BigramLM
from .optim import SGD, Adam, AdamW
from .params import Params
from .tokenizer import CharTokenizer
from .trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BigramLM",
    "CharTokenizer",
    "DataError",
    "DivergenceError",
    "FastloopError",
    "History",
    "OrderError",
    "Params",
    "Trainer",
    "bigram_baseline",
    "get_num_threads",
    "load_docs",
    "schedules",
    "set_num_threads",
    "show_config",
    "split_docs",
]
