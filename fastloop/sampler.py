"""Which examples each step takes.  The data itself is not here."""

import numpy as np

RANDOM_BLOCK = 4096     # random draws made at a time


class Sampler:
    """The indices of every step, as a function of the step alone, so that a run can go on from anywhere.

    n: examples; a step takes `accumulate` micro-batches of `batch_size`.  order: "given", "shuffled" (a new permutation
    each epoch) or "random" (drawn with replacement).  Where `epochs` is true every epoch ends with the batch that is
    left over, however small; else batches run on from the last example to the first.
    """

    def __init__(self, n, batch_size=1, accumulate=1, order="given", seed=0, epochs=False):
        self.n, self.batch_size, self.accumulate = n, batch_size, accumulate
        self.order, self.seed, self.epochs = order, seed, epochs
        self.steps_per_epoch = -(-n // (batch_size * accumulate))

    def take(self, first, steps):
        """For the steps first .. first + steps: (indices, splits), both int64.

        Micro-batch j takes indices[splits[j] : splits[j + 1]]; there are steps x accumulate of them.
        """
        step = np.arange(first, first + steps)
        if self.epochs:
            epoch, inside = np.divmod(step, self.steps_per_epoch)
            begin = epoch * self.n + inside * self.batch_size * self.accumulate
            limit = (epoch + 1) * self.n
        else:
            begin = step * self.batch_size * self.accumulate
            limit = begin + self.batch_size * self.accumulate
        edges = begin[:, None] + self.batch_size * np.arange(self.accumulate + 1)
        edges = np.minimum(edges, limit[:, None])
        splits = np.append(edges[:, :-1], edges[-1, -1])
        return self._examples(splits[0], splits[-1]), splits - splits[0]

    def _examples(self, first, last):
        """The examples at places first .. last of the endless sequence."""
        places = np.arange(first, last)
        if self.order == "given":
            return places % self.n
        # Each epoch (or block of draws) has a generator of its own, seeded by its number: nothing to save or replay.
        size = self.n if self.order == "shuffled" else RANDOM_BLOCK
        blocks = []
        for block in range(first // size, -(-last // size)):
            rng = np.random.default_rng([self.seed, block])
            blocks.append(rng.permutation(self.n) if self.order == "shuffled" else rng.integers(self.n, size=size))
        return np.concatenate(blocks)[places - first // size * size]
