"""Tables and the chart."""
import unittest
import xml.etree.ElementTree as xml

from harness import chart, report


def sample(number, image, system, seconds, **more):
    return dict(round=number, image=image, system=system, seconds=seconds, bytes=8_000_000, requests=4, link_bytes=8_400_000,
                anonymous=20_000_000, file=30_000_000, cpu_seconds=1.5, machine_cpu_seconds=2.0, detail={}) | more


def result():
    samples = [sample(n, "nginx", "containerd", 8.0 + n) for n in (1, 2, 3)]
    samples += [sample(n, "nginx", "floe-index", (8.0 + n) / 10) for n in (1, 2, 3)]
    samples += [dict(round=4, image="nginx", system="containerd", error="it broke"), sample(4, "nginx", "floe-index", 100.0)]
    return dict(version=1, date="2026-01-02T03:04:05Z", rounds=4, rate="100mbit", measured_rate=95e6,
                machine=dict(kernel="6.18", cpus=2, cpu="A & B <C>", memory=2**34, versions=dict(runc="runc 1.1")),
                systems={"containerd": "containerd, full pull", "floe-index": "Floe & index"},
                images={"nginx": dict(digest="sha256:00", size=70_000_000, layers=3)}, samples=samples)


class TestReport(unittest.TestCase):
    def test_shares_are_of_the_same_round(self):
        share = report.summarize(result())["nginx"]["floe-index"]["share"]
        self.assertEqual(share.n, 3)  # the full pull of the fourth round failed
        self.assertAlmostEqual(share.low, 0.1)
        self.assertAlmostEqual(share.high, 0.1)

    def test_the_full_pull_has_no_share_of_itself(self):
        self.assertIsNone(report.summarize(result())["nginx"]["containerd"]["share"])

    def test_starts_through_cri_are_compared_with_the_full_pull_through_cri(self):
        self.assertEqual([report.baseline(name) for name in ("cri-index", "cri-containerd", "ctr-index", "soci", "containerd")],
                         ["cri-containerd", "cri-containerd", "containerd", "containerd", "containerd"])

    def test_failures_are_told(self):
        self.assertIn("1 of 8 starts failed", report.plain(result()))

    def test_a_system_may_be_alone(self):
        alone = result() | dict(samples=[sample(1, "nginx", "floe-index", 1.0)])
        self.assertIsNone(report.summarize(alone)["nginx"]["floe-index"]["share"])
        self.assertEqual(report.rows(alone)[1][0][1:4], ["Floe & index", "1.00 (1.00-1.00)", "-"])

    def test_rows_are_in_the_order_of_the_systems_not_of_the_draw(self):
        backwards = result() | dict(samples=result()["samples"][::-1])
        self.assertEqual([row[1] for row in report.rows(backwards)[1]], ["containerd, full pull", "Floe & index"])

    def test_an_interrupted_bench_has_fewer_rounds(self):
        self.assertIn("Medians of 2 interleaved", report.plain(result() | dict(samples=result()["samples"][:2])))

    def test_a_system_that_always_failed_has_no_row(self):
        failed = [dict(round=1, image="nginx", system="containerd", error="it broke")]
        self.assertEqual(report.rows(result() | dict(samples=failed))[1], [])

    def test_markdown_is_a_table_of_even_rows(self):
        lines = [line for line in report.markdown(result()).splitlines() if line.startswith("|")]
        self.assertEqual(len(lines), 4)
        self.assertEqual(len({line.count("|") for line in lines}), 1)

    def test_the_link_alone(self):
        self.assertAlmostEqual(report.link_seconds(70_000_000, "100mbit"), 5.6)


class TestChart(unittest.TestCase):
    def test_it_is_well_formed_and_within_its_frame(self):
        root = xml.fromstring(chart.svg(result()))
        width, height = float(root.get("width")), float(root.get("height"))
        for shape in root.iter():
            for key in ("x", "x1", "x2"):
                self.assertTrue(0 <= float(shape.get(key, 0)) <= width, shape.attrib)
            for key in ("y", "y1", "y2"):
                self.assertTrue(0 <= float(shape.get(key, 0)) <= height, shape.attrib)

    def test_bars_are_as_long_as_their_times(self):
        bars = [shape for shape in xml.fromstring(chart.svg(result() | dict(samples=result()["samples"][:6]))).iter()
                if shape.tag.endswith("rect") and shape.get("fill") in chart.COLORS.values()]
        full, lazy = (float(bar.get("width")) for bar in bars)
        self.assertAlmostEqual(full / lazy, 10, delta=0.1)

    def test_names_are_escaped(self):
        self.assertIn("Floe &amp; index", chart.svg(result()))

    def test_nothing_measured_is_an_empty_chart(self):
        xml.fromstring(chart.svg(result() | dict(samples=[])))
