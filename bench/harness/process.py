"""Child processes, and waiting for what they do.

Everything the bench starts is started here, each in a session of its own, so that Ctrl-C reaches the bench alone and the
bench ends its children itself. Waiting is always for an event and always has a deadline.
"""
import os
import signal
import subprocess
import threading
import time

from harness import procfs


class Failed(Exception):
    """Something did not go as it must; the message says what and to which thing."""


def interruptible():
    """Makes the first signal to end a KeyboardInterrupt; a second must not cut the cleaning up short."""
    signs = (signal.SIGINT, signal.SIGTERM)

    def interrupted(*_):
        for sign in signs:
            signal.signal(sign, signal.SIG_IGN)
        raise KeyboardInterrupt

    for sign in signs:
        signal.signal(sign, interrupted)


def run(argv, *, deadline=600, **options):
    """Runs a command to its end and returns its stdout; a failure carries the end of its stderr."""
    argv = [str(word) for word in argv]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=deadline,
                              start_new_session=True, **options)
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise Failed(f"running {' '.join(argv)}: {cause}") from cause
    if done.returncode:
        raise Failed(f"{' '.join(argv)[:300]}: exit {done.returncode}: {done.stderr.strip()[-2000:] or done.stdout.strip()[-2000:]}")
    return done.stdout


def talk(argv, **options):
    """Runs a long command whose output goes to our stderr as it comes."""
    argv = [str(word) for word in argv]
    if code := subprocess.run(argv, stdout=2, **options).returncode:
        raise Failed(f"{' '.join(argv)}: exit {code}")


def until(condition, what, seconds, every=0.01):
    """Polls until the condition holds and returns what it returned."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds:g} s for {what}")
        time.sleep(every)
    return value


class Child:
    """A running command. Its stdout is read as it comes, each line with the time it came; stderr goes to a file."""

    def __init__(self, argv, stderr, stdin=subprocess.DEVNULL, **options):
        self.argv = [str(word) for word in argv]
        self.stderr = stderr
        self.lines = []  # (monotonic time, text)
        self._cpu = 0.0  # what it had used when it was reaped
        with open(stderr, "ab") as err:
            self._popen = subprocess.Popen(self.argv, stdin=stdin, stdout=subprocess.PIPE, stderr=err,
                                           start_new_session=True, **options)
        self.pid = self._popen.pid
        self._pump = threading.Thread(target=self._read, daemon=True)
        self._pump.start()

    def _read(self):
        for raw in self._popen.stdout:
            self.lines.append((time.monotonic(), raw.decode(errors="replace").rstrip("\n")))

    def tell(self, text):
        """Writes a line to its stdin, which must have been made a pipe."""
        try:
            self._popen.stdin.write(f"{text}\n".encode())
            self._popen.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; who waits for its answer sees that

    def ended(self):
        """Whether it has ended. It is not reaped, so /proc/PID still tells what it used."""
        if self._popen.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, seconds):
        """Waits for the end, reaps, and returns the exit code."""
        until(self.ended, f"the end of {' '.join(self.argv)}", seconds)
        self._cpu = self.cpu_seconds()
        code = self._popen.wait()
        self._pump.join(10)
        return code

    def cpu_seconds(self):
        """Returns the CPU seconds it has used itself, also after its end."""
        return self._cpu or procfs.cpu_seconds(self.pid)

    def complaint(self):
        """Returns a failure that quotes the end of its stderr."""
        with open(self.stderr, errors="replace") as err:
            return Failed(f"{' '.join(self.argv)} ended early: {err.read()[-2000:].strip()}")

    def output(self):
        return "\n".join(text for _, text in list(self.lines))

    def stop(self, seconds=10):
        """Asks the whole session to end, then makes it."""
        for sign, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 10)):
            try:
                os.killpg(self.pid, sign)
            except ProcessLookupError:
                pass  # it is gone; the wait below only reaps it
            try:
                self._popen.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
