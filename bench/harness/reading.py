"""Speeds of reading one tree in several ways: what `bench/fuse` and `bench/kernel` share."""
import argparse
import json
import os
import random
import sys
import time

from harness import machine, tree
from harness.process import Failed
from harness.sample import Estimate, paired_ratios

WORKLOADS = ("find", "tar", "random", "sequential")
UNITS = {"find": "s", "tar": "s", "random": "reads/s", "sequential": "reads/s", "tsc": "s"}


def arguments(doc, example, here):
    """Returns a parser with the options of both."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"example: {example}")
    parser.add_argument("image", nargs="?", default="nginx", metavar="IMAGE", help="of lab/images.sh (default %(default)s)")
    parser.add_argument("--floe", metavar="PATH", help="a built floe; otherwise it is built from this source")
    parser.add_argument("-n", type=int, default=7, metavar="ROUNDS", help="interleaved rounds (default 7)")
    parser.add_argument("--readers", default="1,8", help="readers at once, with commas (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="of one run of reads of 4 KiB (default 3)")
    parser.add_argument("--drop-caches", action="store_true", help="drop the kernel's caches before each run")
    parser.add_argument("--ram", action="store_true", help="keep store and copies on an ext4 in memory: the software's cost without the disk's")
    parser.add_argument("--lab", default=os.environ.get("LAB", os.path.expanduser("~/.cache/floe-lab")))
    parser.add_argument("--out", default=os.path.join(here, "results"), help="folder for the result (default bench/results)")
    return parser


def same(trees, copy):
    """Makes sure that all trees are the copy."""
    original = tree.identity(copy)
    for name, root in trees.items():
        if tree.identity(root) != original:
            raise Failed(f"the tree of {name} is not that of {copy} (diff -r tells where): nothing to compare")


def measured(options, trees):
    """Returns samples: a workload, its readers, round, tree, and a value in the workload's unit."""
    files = tree.large_files(trees["ext4"])
    seconds = 0 if options.drop_caches else options.seconds  # what has been read once is not cold any more
    reads = lambda kind: lambda root, readers: tree.reads(kind, root, readers, files, seconds)  # noqa: E731 (a table)
    run = {"find": tree.find, "tar": tree.tar, "random": reads("randread"), "sequential": reads("read"), "tsc": tree.tsc}
    wanted = WORKLOADS + (("tsc",) if tree.has_tsc(trees["ext4"]) else ())
    order, samples = random.Random(options.n), []
    machine.drop_caches()  # what made the trees has read one of them already, in longer reads, which the page cache keeps in larger folios
    for root in trees.values():
        tree.tar(root, 1)  # everything local and warm
    for number in range(1, options.n + 1):
        for workload in wanted:
            for readers in map(int, options.readers.split(",")):
                for name in order.sample(list(trees), len(trees)):
                    if options.drop_caches:
                        machine.drop_caches()
                    value = run[workload](trees[name], readers)
                    samples.append(dict(round=number, workload=workload, readers=readers, tree=name, value=value))
        print(f"round {number} of {options.n} done", file=sys.stderr, flush=True)
    return samples


def table(samples, references):
    """Returns a markdown table of medians, and of the first tree's speeds as parts of the references'."""
    names = sorted({sample["tree"] for sample in samples}, key=lambda name: (name != "floe", name))
    pairs = [(name, other) for other in references for name in names if name != other and (name == names[0] or other == references[0])]
    header = ["workload", "readers", *names, *[f"{name} / {other}" for name, other in pairs]]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for workload, readers in dict.fromkeys((s["workload"], s["readers"]) for s in samples):
        values = {name: {s["round"]: s["value"] for s in samples if (s["workload"], s["readers"], s["tree"]) == (workload, readers, name)}
                  for name in names}
        cells = [_value(Estimate(values[name].values()), UNITS[workload]) for name in names]
        for name, other in pairs:
            pair = (values[name], values[other])
            # More reads per second are faster, more seconds are slower.
            speed = Estimate(paired_ratios(*(reversed(pair) if UNITS[workload] == "s" else pair)))
            cells.append(f"{speed.median:.2f} ({speed.low:.2f}-{speed.high:.2f})")
        lines.append(f"| {workload} | {readers} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _value(estimate, unit):
    return f"{estimate.median:.3f} {unit}" if unit == "s" else f"{estimate.median:,.0f} {unit}"


def save(kind, options, image, samples, references):
    """Writes the samples to a file and the table to stdout."""
    result = dict(version=1, image=image.name, digest=image.digest, date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                  caches_dropped=options.drop_caches, ram=options.ram, machine=machine.facts({}), samples=samples)
    os.makedirs(options.out, exist_ok=True)
    path = os.path.join(options.out, f"{kind}-{result['date'].replace(':', '')}.json")
    with open(path, "w") as out:
        json.dump(result, out, indent=1)
    print(table(samples, references))
    print(f"\nMedians of {options.n} interleaved rounds; {path}", file=sys.stderr)
