"""The shaped network of lab/net.sh, seen from the client's side.

`enter` moves this process into the client's namespace; whatever it starts afterwards is there too, so the machine's own
ports and addresses cannot get in the way, nor into a byte count.
"""
import ctypes
import os
import re

from harness.process import Failed, run

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(HERE, "..", "lab", "net.sh")
REGISTRY_HOST = "10.123.0.2"
CLIENT, REGISTRY = "floe-client", "floe-registry"
CLONE_NEWNET = 0x40000000


def up():
    run([SCRIPT, "down"])  # what a killed bench left behind; the caller holds the lock
    run([SCRIPT, "up", "none"])


def down():
    run([SCRIPT, "down"])


def rate(limit, both=False):
    """Shapes what the registry sends, or what both send: a rate as tc writes it, or None."""
    run([SCRIPT, "rate-both" if both else "rate", limit or "none"])


def bits_per_second(limit):
    """Returns the number that a rate as tc writes it stands for; `none` is no limit."""
    if limit == "none":
        return float("inf")
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg])bit", limit)
    bits = float(number[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[number[2]] if number else 0
    if not bits:
        raise Failed(f"rate {limit!r} is not a number with kbit, mbit or gbit behind it")
    return bits


def rate_text(limit):
    """Returns a rate as tc writes it in the way people write it: 100 Mbit/s."""
    bits = bits_per_second(limit)
    if limit == "none":
        return "unshaped"
    factor, unit = next((f, u) for f, u in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (0, "kbit/s")) if bits >= f)
    return f"{bits / (factor or 1e3):g} {unit}"


def enter():
    """Moves this thread, and what it starts from here on, into the client's namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    space = os.open(f"/run/netns/{CLIENT}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(space, CLONE_NEWNET):
            raise Failed(f"entering namespace {CLIENT}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(space)


def parse_received(text, device="veth0"):
    """Returns the received bytes of a device in the text of /proc/net/dev."""
    return _counters(text, device)[0]


def parse_sent(text, device="veth0"):
    """Returns the sent bytes of a device in the text of /proc/net/dev."""
    return _counters(text, device)[8]


def received():
    """Returns the bytes the client has received over the link, headers included."""
    return parse_received(_dev())


def sent():
    """Returns the bytes the client has sent over the link, headers included."""
    return parse_sent(_dev())


def _dev():
    with open("/proc/thread-self/net/dev") as dev:
        return dev.read()


def _counters(text, device):
    for line in text.splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == device:
            return [int(counter) for counter in counters.split()]
    raise Failed(f"/proc/net/dev has no {device}")
