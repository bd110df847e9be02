"""When a container is ready, seen from outside and in the same way for every system."""
import http.client
import time

from harness.images import PORT
from harness.process import Failed, until

EVERY = 0.005  # seconds between two looks


def wait(child, ready, seconds):
    """Waits until the container behind `child` is ready and returns that moment of the monotonic clock.

    A line counts from when it came out of the command; a port from when it has answered a request. A command that ends well
    without relaying the line was asked to end when ready; then its end counts, to its disadvantage if anything.
    """
    kind, _, what = ready.partition(":")

    def line():
        for when, text in list(child.lines):
            if text == what:
                return when
        return None

    def look():
        if when := (line() if kind == "line" else _answered()):
            return when
        if not child.ended():
            return None
        now = time.monotonic()
        if child.wait(5):
            raise child.complaint()
        return line() if kind == "line" and line() else now

    return until(look, f"{ready} from {' '.join(child.argv)}", seconds, EVERY)


def refuse_if_taken():
    """Fails if somebody answers on the port before anything was started: it would be taken for the container."""
    if _answered():
        raise Failed(f"something already answers on port {PORT}")


def _answered():
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
    try:
        connection.request("GET", "/")
        if connection.getresponse().status == 200:
            return time.monotonic()
    except (OSError, http.client.HTTPException):
        pass  # nobody is there yet
    finally:
        connection.close()
    return None
