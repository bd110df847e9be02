"""Debian's docker-registry behind the shaped link, and what its log says it sent.

The log has one JSON line per finished response with the bytes written and the time taken. A response still running at READY
is finished later (or cut by the client's end), so it is counted by the share of its time that lies before READY.
"""
import json
import os
import shutil
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from datetime import datetime

from harness import network
from harness.process import Child, Failed, run, until

ADDRESS = f"{network.REGISTRY_HOST}:5000"
BEHIND = f"{network.REGISTRY_HOST}:5002"  # where it is when ADDRESS is the far end of a long line
DEBUG = f"{network.REGISTRY_HOST}:5001"
CONFIG = """\
version: 0.1
log:
  level: info
  formatter: json
  accesslog: {{disabled: true}}
storage:
  filesystem: {{rootdirectory: "{data}"}}
  cache: {{blobdescriptor: inmemory}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http:
  addr: "{address}"
  debug: {{addr: "{debug}", prometheus: {{enabled: true}}}}
"""
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Traffic:
    """Responses that began in a span of time, and the bytes of their bodies sent in it."""
    requests: int
    bytes: int


def traffic(lines, begin, end):
    """Sums the log's lines between two times of the wall clock."""
    requests, sent = 0, 0.0
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the registry's start-up writes plain text
        if not entry.get("msg", "").startswith("response completed") or "http.response.written" not in entry:
            continue
        finished = parse_time(entry["time"])
        started = finished - parse_duration(entry["http.response.duration"])
        if finished < begin or started >= end:
            continue
        requests += 1
        share = 1.0 if finished <= end else (end - started) / (finished - started)
        sent += entry["http.response.written"] * share
    return Traffic(requests, round(sent))


def parse_time(text):
    """Returns seconds since 1970 of an RFC 3339 time with up to nine digits behind the dot."""
    whole, dot, rest = text.partition(".")
    if not dot:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    digits = len(rest) - len(rest.lstrip("0123456789"))
    zone = rest[digits:].replace("Z", "+00:00")
    return datetime.fromisoformat(whole + zone).timestamp() + float("0." + rest[:digits])


def parse_duration(text):
    """Returns the seconds of a duration as Go prints it: 1h2m3.5s, 1.2ms, 15µs."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}
    total, number, unit = 0.0, "", ""
    for char in text + "0":
        if char.isdigit() or char == ".":
            if unit:
                total += float(number) * units[unit]
                number, unit = "", ""
            number += char
        else:
            unit += char
    return total


class Registry:
    """A running registry; a context manager. Its storage stays from run to run, so images are pushed once."""

    address = ADDRESS

    def __init__(self, home, drop, delay=0):
        """`drop` names the top-level repositories that must not survive from earlier runs; `delay` is in ms each way."""
        self._delay = delay
        self._between = None
        self._home = home
        self._data = os.path.join(home, "data")
        self._log = os.path.join(home, "log")
        for name in drop:
            shutil.rmtree(os.path.join(self._data, "docker/registry/v2/repositories", name), ignore_errors=True)
        self._child = None

    def __enter__(self):
        os.makedirs(self._data, exist_ok=True)
        config = os.path.join(self._home, "config.yml")
        with open(config, "w") as out:
            out.write(CONFIG.format(data=self._data, address=BEHIND if self._delay else ADDRESS, debug=DEBUG))
        open(self._log, "w").close()
        space = ["nsenter", f"--net=/run/netns/{network.REGISTRY}", "--"]
        self._child = Child(space + ["docker-registry", "serve", config], stderr=self._log)
        if self._delay:
            proxy = ["python3", os.path.join(os.path.dirname(os.path.abspath(__file__)), "delay.py")]
            self._between = Child(space + proxy + [ADDRESS, BEHIND, self._delay], stderr=self._log + ".delay")
        try:
            until(self._answers, f"the registry (its log is {self._log})", 20)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._child.stop()
        if self._between:
            self._between.stop()

    def push(self, image, repository):
        """Pushes an image's layout under a repository name, unless it is there."""
        if self._digest(repository, image.tag) == image.digest:
            return
        run(["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false",
             f"oci:{image.layout}:{image.tag}", f"docker://{ADDRESS}/{repository}:{image.tag}"])
        if (there := self._digest(repository, image.tag)) != image.digest:
            raise Failed(f"pushing {repository}: the registry has {there}, not {image.digest}")

    def mark(self):
        """Returns a place in the log; `since` reads from it."""
        return os.path.getsize(self._log)

    def since(self, mark):
        """Returns the log's lines after a mark, once no response is under way."""
        until(lambda: self._in_flight() == 0, "the registry's last response", 30)
        # The log line follows the counter. Nobody else is asking, so when a request of ours is logged, so are the others.
        word = uuid.uuid4().hex
        self._get(f"http://{ADDRESS}/v2/?mark={word}")

        def lines():
            with open(self._log, errors="replace") as log:
                log.seek(mark)
                text = log.read()
            return text.splitlines() if word in text else None

        return until(lines, "the registry's log", 10)

    def fetch(self, image):
        """Downloads an image's largest layer and returns its size: a measure of the link."""
        blob = max(image.layers, key=lambda layer: layer["size"])
        size = 0
        with urllib.request.urlopen(f"http://{ADDRESS}/v2/{image.name}/blobs/{blob['digest']}", timeout=600) as response:
            while piece := response.read(1 << 20):
                size += len(piece)
        return size

    def _get(self, url, accept=None):
        request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.headers, response.read()

    def _answers(self):
        if self._child.ended():
            raise self._child.complaint()
        try:
            return self._get(f"http://{ADDRESS}/v2/")
        except OSError:
            return None

    def _digest(self, repository, tag):
        try:
            return self._get(f"http://{ADDRESS}/v2/{repository}/manifests/{tag}", MANIFESTS)[0]["Docker-Content-Digest"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _in_flight(self):
        _, metrics = self._get(f"http://{DEBUG}/metrics")
        return sum(float(line.split()[-1]) for line in metrics.decode().splitlines()
                   if line.startswith("registry_http_in_flight_requests"))
