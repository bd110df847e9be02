"""One cold start, measured: nothing kept on the node, nothing in the page cache, and all of it gone afterwards."""
import time

from harness import machine, network, procfs, ready
from harness.registry import traffic


def cold_start(system, image, registry):
    """Returns the facts of one start of the image as a dict of numbers; times are in seconds, sizes in bytes."""
    machine.drop_caches()
    with system.session(image) as session:
        ready.refuse_if_taken()
        mark = registry.mark()
        link, machine_cpu = network.received(), procfs.machine_cpu_seconds()
        clock = time.time() - time.monotonic()  # from the monotonic clock to the log's
        with procfs.MemoryWatch(session.pids) as memory:
            start, end = session.to_ready()
            link, machine_cpu = network.received() - link, procfs.machine_cpu_seconds() - machine_cpu
            memory.sample()
            cpu = session.cpu_seconds()
        detail = session.finish()
    responses = traffic(registry.since(mark), clock + start, clock + end)
    return dict(seconds=end - start, bytes=responses.bytes, requests=responses.requests, link_bytes=link,
                anonymous=memory.anonymous, file=memory.file, cpu_seconds=cpu, machine_cpu_seconds=machine_cpu, detail=detail)
