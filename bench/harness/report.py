"""From samples to tables. A sample is a dict: round, image, system, and either `error` or what measure.cold_start returns."""
from harness.network import bits_per_second, rate_text
from harness.sample import Estimate, paired_ratios

BASELINES = {"cri-": "cri-containerd", "": "containerd"}  # what a system is compared with, by how its name begins
COLUMNS = ("seconds", "bytes", "requests", "link_bytes", "anonymous", "file", "cpu_seconds", "machine_cpu_seconds")


def summarize(result):
    """Returns {image: {system: {column: Estimate, "share": Estimate or None}}} in the result's order of images and systems.

    `share` is the time as a part of the full pull's in the same round; starts through CRI are compared with the full pull through CRI. What never succeeded is left out.
    """
    summary, samples = {}, result["samples"]
    for image in result["images"]:
        for system in result["systems"]:
            if mine := _good(samples, image, system):
                row = {column: Estimate([s[column] for s in mine]) for column in COLUMNS}
                ratios = paired_ratios(_seconds(samples, image, system), _seconds(samples, image, baseline(system)))
                row["share"] = Estimate(ratios) if ratios and system != baseline(system) else None
                summary.setdefault(image, {})[system] = row
    return summary


def baseline(system):
    """Returns the name of the full pull that a system is compared with."""
    return next(name for prefix, name in BASELINES.items() if system.startswith(prefix))


def rows(result):
    """Returns the table of a result as a header and rows of text."""
    header = ["image", "system", "ready, s", "of full pull", "MB", "requests", "RSS anon + file, MB", "CPU, s"]
    table = []
    for image, systems in summarize(result).items():
        for system, row in systems.items():
            table.append([
                image, result["systems"][system], _seconds_text(row["seconds"]), "1" if system == baseline(system) else _share_text(row["share"]),
                f"{row['bytes'].median / 1e6:.1f}", f"{row['requests'].median:.0f}",
                f"{row['anonymous'].median / 1e6:.0f} + {row['file'].median / 1e6:.0f}", f"{row['cpu_seconds'].median:.1f}"])
    return header, table


def plain(result):
    """Returns the table for a terminal."""
    header, table = rows(result)
    widths = [max(len(line[column]) for line in [header, *table]) for column in range(len(header))]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in [header, *table]]
    return "\n".join([*lines, "", *notes(result)])


def markdown(result):
    """Returns the table for the README, with what must stand beside it."""
    header, table = rows(result)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(line) + " |" for line in table]
    return "\n".join([*lines, "", *notes(result)]) + "\n"


def notes(result):
    """Returns the sentences without which the numbers mean little."""
    machine = result["machine"]
    limits = ", ".join(f"{name} {link_seconds(image['size'], result['rate']):.1f} s"
                       for name, image in result["images"].items())
    coverage = {row["seconds"].coverage for systems in summarize(result).values() for row in systems.values()}
    failed = sum("error" in sample for sample in result["samples"])
    return [
        f"Medians of {rounds(result)} interleaved cold rounds; in brackets the interval between order statistics that holds the "
        f"median with {' or '.join(f'{100 * share:.1f} %' for share in sorted(coverage))}. Shares are of the full pull of the "
        f"same round. {failed} of {len(result['samples'])} starts failed.",
        f"Link {rate_text(result['rate'])}{delay_text(result)}, measured {result['measured_rate'] / 1e6:.1f} Mbit/s of payload; all layers alone need {limits}.",
        f"{result['date']}, Linux {machine['kernel']}, {machine['cpus']} x {machine['cpu']}, {machine['memory'] / 2**30:.0f} GiB; "
        + "; ".join(machine["versions"].values()) + ".",
    ]


def rounds(result):
    """Returns how many rounds were begun; an interrupted bench has fewer than were asked for."""
    return max((sample["round"] for sample in result["samples"]), default=0)


def delay_text(result):
    """Returns how long the line is, where it was made longer."""
    delay = result.get("delay", 0)
    return f", {delay:g} ms each way" if delay else ""


def link_seconds(size, rate):
    """Returns how long the link alone needs for so many bytes."""
    return size * 8 / bits_per_second(rate)


def _good(samples, image, system):
    return [s for s in samples if s["image"] == image and s["system"] == system and "error" not in s]


def _seconds(samples, image, system):
    return {s["round"]: s["seconds"] for s in _good(samples, image, system)}


def _seconds_text(estimate):
    return f"{estimate.median:.2f} ({estimate.low:.2f}-{estimate.high:.2f})"


def _share_text(estimate):
    if estimate is None:
        return "-"
    return f"1/{1 / estimate.median:.1f} = {estimate.median:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"
