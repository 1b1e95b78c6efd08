"""Which examples each step takes.  The data itself is not here, nor what a step does with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ._types import Ints

ORDERS = ("given", "shuffled", "random")
RANDOM_BLOCK = 4096     # random draws made at a time
AHEAD = 4096            # examples that are looked up at a time where steps are asked for one by one


class Sampler:
    """The indices of every step, as a function of the step alone, so that a run can be resumed at any step.

    n: examples; a step takes `accumulate` micro-batches of `batch_size`.  order: "given", "shuffled" (a new permutation
    each epoch) or "random" (drawn with replacement).  If `epochs`, the last batch of an epoch holds what is left
    over, however little; else a batch that reaches the last example goes on with the first.
    """

    def __init__(
        self, n: int, batch_size: int = 1, accumulate: int = 1, order: str = "given", seed: int = 0,
        epochs: bool = False,
    ) -> None:
        self.n, self.batch_size, self.accumulate = n, batch_size, accumulate
        self.order, self.seed, self.epochs = order, seed, epochs
        self.steps_per_epoch = -(-n // (batch_size * accumulate))
        self.first = self.end = 0       # the steps that are looked up
        self.indices = self.splits = np.empty(0, np.int64)

    def take(self, first: int, steps: int) -> tuple[Ints, Ints]:
        """For the steps first .. first + steps: (indices, splits), both int64.

        Micro-batch j takes indices[splits[j] : splits[j + 1]]; there are steps x accumulate of them.  Indices
        before splits[0] and from splits[-1] on belong to other steps.
        """
        if not self.first <= first <= first + steps <= self.end:
            # Where steps are asked for in turn, twice as many as last time: a run of one step looks up only one.
            ahead = min(2 * (self.end - self.first), AHEAD // (self.batch_size * self.accumulate))
            count = max(steps, ahead if first == self.end else 0)
            self.indices, self.splits = self.look_up(first, count)
            self.first, self.end = first, first + count
        begin = (first - self.first) * self.accumulate
        return self.indices, self.splits[begin : begin + steps * self.accumulate + 1]

    def look_up(self, first: int, steps: int) -> tuple[Ints, Ints]:
        """What `take` gives, of these steps alone."""
        if not self.epochs:
            place = first * self.batch_size * self.accumulate
            splits = np.arange(steps * self.accumulate + 1) * self.batch_size
            return self.examples(place, place + steps * self.accumulate * self.batch_size), splits
        epoch, inside = np.divmod(np.arange(first, first + steps), self.steps_per_epoch)
        begin = epoch * self.n + inside * self.batch_size * self.accumulate
        limit = (epoch + 1) * self.n
        edges = begin[:, None] + self.batch_size * np.arange(self.accumulate + 1)
        edges = np.minimum(edges, limit[:, None])
        splits = np.append(edges[:, :-1], edges[-1, -1])
        return self.examples(splits[0], splits[-1]), splits - splits[0]

    def examples(self, first: int, last: int) -> Ints:
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
