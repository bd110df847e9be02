"""Sums over the registry's log, and counters of the kernel."""
import json
import unittest

from harness import network, procfs
from harness.process import Failed
from harness.registry import Traffic, parse_duration, parse_time, traffic

BASE = parse_time("2026-01-02T03:04:05Z")


def line(second, duration, written, msg="response completed"):
    return json.dumps({"msg": msg, "time": f"2026-01-02T03:04:{5 + second:02d}.5Z", "http.response.duration": duration,
                       "http.response.written": written, "http.response.status": 200})


class TestTraffic(unittest.TestCase):
    def test_whole_responses_count_whole(self):
        lines = [line(1, "1s", 100), line(2, "3ms", 20)]
        self.assertEqual(traffic(lines, BASE, BASE + 10), Traffic(2, 120))

    def test_failed_responses_are_requests_too(self):
        self.assertEqual(traffic([line(1, "1ms", 40, "response completed with error")], BASE, BASE + 10), Traffic(1, 40))

    def test_a_response_under_way_at_the_end_counts_by_its_time(self):
        # It ran from 1.5 to 5.5 s; ready was at 2.5 s, a quarter of the way.
        self.assertEqual(traffic([line(5, "4s", 1000)], BASE, BASE + 2.5), Traffic(1, 250))

    def test_a_response_under_way_at_the_begin_counts_by_its_time_and_is_no_request_of_the_span(self):
        self.assertEqual(traffic([line(5, "4s", 1000)], BASE + 4.5, BASE + 10), Traffic(0, 250))
        self.assertEqual(traffic([line(5, "4s", 1000)], BASE + 2.5, BASE + 3.5), Traffic(0, 250))

    def test_what_begins_later_or_ended_before_does_not_count(self):
        lines = [line(5, "1s", 1000), line(0, "1ms", 7)]
        self.assertEqual(traffic(lines, BASE + 1, BASE + 4.5), Traffic(0, 0))

    def test_other_lines_are_passed_over(self):
        lines = ["plain text", json.dumps({"msg": "redis not configured", "time": "2026-01-02T03:04:05Z"}), line(1, "1s", 5)]
        self.assertEqual(traffic(lines, BASE, BASE + 10), Traffic(1, 5))

    def test_an_instant_response_divides_by_nothing(self):
        self.assertEqual(traffic([line(1, "0s", 5)], BASE, BASE + 1.5), Traffic(0, 0))
        self.assertEqual(traffic([line(1, "0s", 5)], BASE, BASE + 1.6), Traffic(1, 5))


class TestTimes(unittest.TestCase):
    def test_times_with_and_without_a_fraction(self):
        for text, offset in [("2026-01-02T03:04:05Z", 0), ("2026-01-02T03:04:05.25Z", 0.25),
                             ("2026-01-02T03:04:05.123456789Z", 0.123456789),
                             ("2026-01-02T05:04:05.5+02:00", 0.5), ("2026-01-02T04:04:05+01:00", 0)]:
            with self.subTest(text):
                self.assertAlmostEqual(parse_time(text) - BASE, offset, places=5)

    def test_durations_as_go_prints_them(self):
        for text, seconds in [("0s", 0), ("5.697224878s", 5.697224878), ("1.12689ms", 0.00112689), ("15µs", 15e-6), ("15us", 15e-6),
                              ("700ns", 7e-7), ("1m2.5s", 62.5), ("1h0m3s", 3603)]:
            with self.subTest(text):
                self.assertAlmostEqual(parse_duration(text), seconds, places=12)


class TestCounters(unittest.TestCase):
    def test_received_bytes_of_a_device(self):
        text = "Inter-|   Receive\n face |bytes packets\n    lo: 12 1 0\n veth0: 345678 9 0 0 0 0 0 0 11 1\nveth01:5 6\n"
        self.assertEqual(network.parse_received(text), 345678)
        self.assertEqual(network.parse_sent(text), 11)
        with self.assertRaises(Failed):
            network.parse_received(text, "eth9")

    def test_rates(self):
        self.assertEqual(network.bits_per_second("100mbit"), 1e8)
        self.assertEqual(network.bits_per_second("2.5gbit"), 2.5e9)
        self.assertEqual([network.rate_text(rate) for rate in ("100mbit", "1gbit", "2.5gbit", "512kbit")],
                         ["100 Mbit/s", "1 Gbit/s", "2.5 Gbit/s", "512 kbit/s"])
        for wrong in ("fast", "xmbit", "0mbit", "-1mbit", "infmbit"):
            with self.subTest(wrong), self.assertRaises(Failed):
                network.bits_per_second(wrong)

    def test_memory_by_kind(self):
        text = "00400000-7ffe [rollup]\nRss:  100 kB\nPss:  60 kB\nAnonymous:  30 kB\nLazyFree:   0 kB\n"
        self.assertEqual(procfs.parse_rollup(text), (30 * 1024, 70 * 1024))

    def test_cpu_of_a_command_with_brackets_in_its_name(self):
        stat = "7 (a) b (c)) S 1 7 7 0 -1 0 9 9 9 9 200 50 30 20 20 0 1 0 5"
        self.assertAlmostEqual(procfs.parse_cpu(stat, children=False), 250 / procfs.TICK)
        self.assertAlmostEqual(procfs.parse_cpu(stat, children=True), 300 / procfs.TICK)
