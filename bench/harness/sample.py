"""Medians and their intervals.

The interval is made of order statistics: with n independent values, the median lies between the k-th smallest and the k-th
largest with a probability that follows from the binomial distribution alone, whatever the values' own distribution is. The
narrowest such interval that reaches the wanted probability is taken. Fewer than six values cannot reach 95 %: then it is
the whole range, and its true probability is said (n = 5: 93.75 %, n = 3: 75 %).
"""
from math import comb
from statistics import median


class Estimate:
    """The median of some values, with an interval and the interval's probability."""

    def __init__(self, values, confidence=0.95):
        ordered = sorted(values)
        if not ordered:
            raise ValueError("an estimate needs a value")
        rank = _rank(len(ordered), confidence)
        self.n = len(ordered)
        self.median = median(ordered)
        self.low, self.high = ordered[rank], ordered[-1 - rank]
        self.coverage = _coverage(self.n, rank)

    def as_json(self):
        return dict(n=self.n, median=self.median, low=self.low, high=self.high, coverage=round(self.coverage, 4))


def _coverage(n, rank):
    """Returns the probability that the median lies between the values of this rank from either end (0 is the outermost)."""
    return 1 - 2 * sum(comb(n, below) for below in range(rank + 1)) / 2**n if n > 1 else 0.0


def _rank(n, confidence):
    """Returns the innermost rank that still reaches the confidence, or the outermost."""
    rank = 0
    while rank + 1 < n - 1 - rank and _coverage(n, rank + 1) >= confidence:
        rank += 1
    return rank


def paired_ratios(numerators, denominators):
    """Returns the ratios of those rounds that both have; each argument maps a round to a value."""
    return [numerators[key] / denominators[key] for key in sorted(numerators.keys() & denominators.keys())]
