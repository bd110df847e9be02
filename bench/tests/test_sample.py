"""Medians, intervals and pairs."""
import random
import unittest
from statistics import median

from harness.sample import Estimate, paired_ratios


class TestEstimate(unittest.TestCase):
    def test_ranks_follow_the_binomial_distribution(self):
        # n, the two places (from 1) that bound the interval, and its probability: the usual table of the sign test.
        for n, low, high, coverage in [(1, 1, 1, 0.0), (2, 1, 2, 0.5), (3, 1, 3, 0.75), (5, 1, 5, 0.9375), (6, 1, 6, 0.96875),
                                       (8, 1, 8, 0.9921875), (9, 2, 8, 0.9609375), (10, 2, 9, 0.978515625), (20, 6, 15, 0.958610534)]:
            with self.subTest(n=n):
                estimate = Estimate(range(n, 0, -1))
                self.assertEqual((estimate.low, estimate.high), (low, high))
                self.assertAlmostEqual(estimate.coverage, coverage)

    def test_median_is_the_middle(self):
        self.assertEqual(Estimate([3, 1, 2]).median, 2)
        self.assertEqual(Estimate([4, 1, 2, 3]).median, 2.5)

    def test_nothing_has_no_median(self):
        with self.assertRaises(ValueError):
            Estimate([])

    def test_interval_holds_the_true_median_as_often_as_it_says(self):
        dice = random.Random(1)
        draws = [Estimate([dice.expovariate(1) for _ in range(9)]) for _ in range(4000)]
        true = median([dice.expovariate(1) for _ in range(200_001)])
        held = sum(draw.low <= true <= draw.high for draw in draws) / len(draws)
        self.assertAlmostEqual(held, draws[0].coverage, delta=0.015)


class TestPairs(unittest.TestCase):
    def test_only_rounds_that_both_have(self):
        self.assertEqual(paired_ratios({1: 2.0, 2: 3.0, 4: 9.0}, {1: 4.0, 2: 3.0, 3: 1.0}), [0.5, 1.0])
