"""What a run records.  Drawing and diagnosing it are elsewhere."""

import numpy as np


class History:
    """One entry a step of a run, as float64 arrays.

    loss: nats (or the model's own loss); lr: after the schedule; norm: of the gradient, before clipping;
    clipped: bool, whether clipping took hold; seconds: since the run began.  evaluations: list of (step, loss).
    predictions: how many the run has trained on.  cut: documents cut to block_size.
    start_step: the trainer's step count when the run began.  stop_reason: why it ended.  interrupted: by Ctrl-C.
    """

    columns = ("loss", "lr", "norm", "clipped", "seconds")

    def __init__(self, start_step=0):
        self._columns = {name: np.empty(0, bool if name == "clipped" else np.float64) for name in self.columns}
        self._size = 0
        self.start_step = start_step
        self.evaluations = []
        self.predictions = self.cut = 0
        self.stop_reason = None
        self.interrupted = False

    def __len__(self):
        return self._size

    def __getattr__(self, name):
        if name in self.columns:
            return self._columns[name][: self._size]
        raise AttributeError(f"History has no attribute {name!r}")

    def extend(self, **values):
        """Append arrays of equal length, one for each column."""
        count = len(values["loss"])
        for name, column in self._columns.items():
            if len(column) < self._size + count:
                column = np.resize(column, max(2 * len(column), self._size + count))
                self._columns[name] = column
            column[self._size : self._size + count] = values[name]
        self._size += count

    def mean_loss(self, window=100):
        """The mean loss of the last `window` steps, or of all where there are fewer."""
        return float(self.loss[-window:].mean())

    def __repr__(self):
        ends = f", loss {self.loss[0]:.4f} -> {self.mean_loss():.4f}" if self._size else ""
        return f"<History of {self._size} steps{ends}, {self.stop_reason or 'running'}>"
