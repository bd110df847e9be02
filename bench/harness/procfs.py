"""What the kernel says about processes: memory by kind, CPU seconds, and which processes belong to whom."""
import os
import threading

TICK = os.sysconf("SC_CLK_TCK")


def parse_rollup(text):
    """Returns (anonymous, file) bytes of an smaps_rollup. Shared memory counts as file."""
    sizes = {}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if rest.strip().endswith("kB"):
            sizes[key] = int(rest.split()[0]) * 1024
    anonymous = sizes.get("Anonymous", 0)
    return anonymous, sizes.get("Rss", 0) - anonymous


def parse_cpu(stat, children):
    """Returns the CPU seconds in a /proc/PID/stat; with those of reaped children if asked."""
    fields = stat[stat.rindex(")") + 2:].split()  # a command's name may hold spaces and brackets; the 3rd field is first here
    own, reaped = fields[11:13], fields[13:15]
    return sum(int(ticks) for ticks in own + (reaped if children else [])) / TICK


def memory(pid):
    """Returns (anonymous, file) bytes of a process; zeros if it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            return parse_rollup(rollup.read())
    except OSError:
        return 0, 0


def cpu_seconds(pid, children=False):
    """Returns the CPU seconds a process has used; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return parse_cpu(stat.read(), children)
    except OSError:
        return 0.0


def machine_cpu_seconds():
    """Returns the CPU seconds that anybody on this machine has used since it started."""
    with open("/proc/stat") as stat:
        ticks = [int(word) for word in stat.readline().split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = ticks[:7]  # guest time is within user
    return (user + nice + system + irq + softirq) / TICK


def processes(word):
    """Returns the ids of processes that have `word` somewhere in one of their arguments, this one excepted."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as cmdline:
                if word.encode() in cmdline.read():
                    found.append(int(entry))
        except OSError:
            continue  # it ended meanwhile
    return found


def with_descendants(pids):
    """Returns the processes and all that descend from them."""
    children = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                text = stat.read()
        except OSError:
            continue  # it ended meanwhile
        parent = int(text[text.rindex(")") + 2:].split()[1])
        children.setdefault(parent, []).append(int(entry))
    family, queue = set(), list(pids)
    while queue:
        pid = queue.pop()
        if pid not in family:
            family.add(pid)
            queue += children.get(pid, [])
    return family


class MemoryWatch:
    """Samples the memory of a changing set of processes until closed; keeps the highest sum of each kind."""

    EVERY = 0.2  # seconds; a sample walks page tables, and must not cost what is being measured

    def __init__(self, pids):
        self.anonymous = self.file = 0
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def sample(self):
        sums = [memory(pid) for pid in self._pids()]
        self.anonymous = max(self.anonymous, sum(anonymous for anonymous, _ in sums))
        self.file = max(self.file, sum(file for _, file in sums))

    def _watch(self):
        while not self._stop.wait(self.EVERY):
            self.sample()
