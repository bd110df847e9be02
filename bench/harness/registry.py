"""Debian's docker-registry behind the shaped link, and what its log says it sent.

The log has one JSON line per finished response with the bytes written and the time taken. A response still running at READY
is finished later (or cut by the client's end), so it is counted by the share of its time that lies before READY; in the same way one that was
running already when the span began.
"""
import json
import os
import shutil
import ssl
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from datetime import datetime

from harness import machine, network
from harness.process import Child, Failed, run, until

ADDRESS = f"{network.REGISTRY_HOST}:5000"
BEHIND = f"{network.REGISTRY_HOST}:5002"  # where it is when ADDRESS is the far end of a long line
DEBUG = f"{network.REGISTRY_HOST}:5001"
TLS, TLS_BEHIND, TLS_DEBUG = (f"{network.REGISTRY_HOST}:{port}" for port in (5443, 5442, 5441))  # the same by HTTPS, for clients that know no other
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
CERTIFIED = '  tls: {{certificate: "{0}/certificate.pem", key: "{0}/key.pem"}}\n'
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json"


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
        requests += started >= begin
        whole = started >= begin and finished <= end
        share = 1.0 if whole else (min(end, finished) - max(begin, started)) / (finished - started)
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

    def __init__(self, home, drop, delay=0, tls=False):
        """`drop` names the top-level repositories that must not survive from earlier runs; `delay` is in ms each way; `tls` says
        whether it answers by HTTPS too, with a certificate that is made for the occasion."""
        self._home = home
        self.certificate = os.path.join(home, "certificate.pem")
        self._servers = [_Server(home, "log", ADDRESS, BEHIND, DEBUG, delay)]
        if tls:
            self._servers.append(_Server(home, "log.tls", TLS, TLS_BEHIND, TLS_DEBUG, delay, tls=True))
        self._tls = tls
        for name in drop:
            shutil.rmtree(os.path.join(home, "data/docker/registry/v2/repositories", name), ignore_errors=True)

    def __enter__(self):
        os.makedirs(os.path.join(self._home, "data"), exist_ok=True)
        machine.end_all(self._home)  # what a killed bench left
        if self._tls:
            run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "7", "-subj", "/CN=bench",
                 "-addext", f"subjectAltName=IP:{network.REGISTRY_HOST}", "-keyout", f"{self._home}/key.pem", "-out", self.certificate])
        try:
            for server in self._servers:
                server.start()
            for server in self._servers:
                until(server.answers, f"the registry (its log is {server.log})", 20)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.stop()

    def push(self, image, repository):
        """Pushes an image's layout under a repository name, unless it is there."""
        if self._digest(repository, image.tag) == image.digest:
            return
        run(["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false",
             f"oci:{image.layout}:{image.tag}", f"docker://{ADDRESS}/{repository}:{image.tag}"])
        if (there := self._digest(repository, image.tag)) != image.digest:
            raise Failed(f"pushing {repository}: the registry has {there}, not {image.digest}")

    def layers(self, reference):
        """Returns the digests of the layers of what it has by a reference, bottom first."""
        repository, _, tag = reference.removeprefix(f"{ADDRESS}/").rpartition(":")
        return [layer["digest"] for layer in json.loads(_get(f"http://{ADDRESS}/v2/{repository}/manifests/{tag}", MANIFESTS)[1])["layers"]]

    def entry(self, reference, kind):
        """The digest of the entry of an image index that has this artifact type."""
        repository, _, tag = reference.removeprefix(f"{ADDRESS}/").rpartition(":")
        entries = json.loads(_get(f"http://{ADDRESS}/v2/{repository}/manifests/{tag}", MANIFESTS)[1])["manifests"]
        return next(entry["digest"] for entry in entries if entry.get("artifactType") == kind)

    def mark(self):
        """Returns a place in the log; `since` reads from it."""
        return [os.path.getsize(server.log) for server in self._servers]

    def since(self, mark):
        """Returns the log's lines after a mark, once no response is under way."""
        return [line for server, place in zip(self._servers, mark) for line in server.since(place)]

    def fetch(self, image):
        """Downloads an image's largest layer and returns its size: a measure of the link."""
        blob = max(image.layers, key=lambda layer: layer["size"])
        size = 0
        with urllib.request.urlopen(f"http://{ADDRESS}/v2/{image.name}/blobs/{blob['digest']}", timeout=600) as response:
            while piece := response.read(1 << 20):
                size += len(piece)
        return size

    def _digest(self, repository, tag):
        try:
            return _get(f"http://{ADDRESS}/v2/{repository}/manifests/{tag}", MANIFESTS)[0]["Docker-Content-Digest"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise


class _Server:
    """One docker-registry at one address, on the storage that all share."""

    def __init__(self, home, log, address, behind, debug, delay, tls=False):
        self._home, self._address, self._behind, self._debug, self._delay, self._tls = home, address, behind, debug, delay, tls
        self.log = os.path.join(home, log)
        self._children = []

    def start(self):
        config = f"{self.log}.yml"
        with open(config, "w") as out:
            out.write(CONFIG.format(data=os.path.join(self._home, "data"), address=self._behind if self._delay else self._address, debug=self._debug))
            out.write(CERTIFIED.format(self._home) if self._tls else "")
        open(self.log, "w").close()
        space = ["nsenter", f"--net=/run/netns/{network.REGISTRY}", "--"]
        self._children.append(Child(space + ["docker-registry", "serve", config], stderr=self.log))
        if self._delay:
            proxy = ["python3", os.path.join(os.path.dirname(os.path.abspath(__file__)), "delay.py")]
            self._children.append(Child(space + proxy + [self._address, self._behind, self._delay], stderr=f"{self.log}.delay"))

    def stop(self):
        for child in self._children:
            child.stop()

    def answers(self):
        if self._children[0].ended():
            raise self._children[0].complaint()
        try:
            return self._ask("/v2/")
        except OSError:
            return None

    def since(self, mark):
        """Returns the log's lines after a place in it, once no response is under way."""
        until(lambda: self._in_flight() == 0, "the registry's last response", 30)
        # The log line follows the counter. Nobody else is asking, so when a request of ours is logged, so are the others.
        word = uuid.uuid4().hex
        self._ask(f"/v2/?mark={word}")

        def lines():
            with open(self.log, errors="replace") as log:
                log.seek(mark)
                text = log.read()
            return text.splitlines() if word in text else None

        return until(lines, "the registry's log", 10)

    def _ask(self, path):
        scheme, trusted = ("https", ssl.create_default_context(cafile=f"{self._home}/certificate.pem")) if self._tls else ("http", None)
        with urllib.request.urlopen(f"{scheme}://{self._address}{path}", timeout=10, context=trusted) as response:
            return response.read()

    def _in_flight(self):
        _, metrics = _get(f"http://{self._debug}/metrics")
        return sum(float(line.split()[-1]) for line in metrics.decode().splitlines()
                   if line.startswith("registry_http_in_flight_requests"))


def _get(url, accept=None):
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.headers, response.read()
