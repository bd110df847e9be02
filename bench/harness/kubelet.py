#!/usr/bin/python3
"""kubelet.py SOCKET SANDBOX-IMAGE   kubelet's side of a containerd, in the small: one container in one pod, with the node's network.

Started by cri.py, with Debian's Python, which has grpc. It has the sandbox's image pulled, says `up`, and waits on its stdin for the name of an image:
that it has pulled (`pulled`) and started (`started`). Then it follows the container's log and says each of its lines, until its stdin ends or says
`end`: then it takes container and pod away.

There is no generated code: of a message CRI needs a few fields, and they are put together by their numbers (k8s.io/cri-api, runtime/v1/api.proto).
"""
import os
import select
import sys
import tempfile
import time

import grpc

EVERY = 0.005  # seconds between two looks at the log
NODE, CONTAINER = 2, 1  # of NamespaceMode


def message(fields):
    """Returns a message of protobuf; `fields` maps numbers to text, numbers, or messages as bytes."""
    parts = []
    for number, value in fields.items():
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        else:
            value = value.encode() if isinstance(value, str) else value
            parts.append(varint(number << 3 | 2) + varint(len(value)) + value)
    return b"".join(parts)


def varint(value):
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def first_text(data):
    """Returns the text of a message whose first field is one, shorter than 128 bytes."""
    if data[0] != 1 << 3 | 2 or data[1] > 0x7F:
        raise ValueError(f"an answer without a text in its first field: {data!r}")
    return data[2:2 + data[1]].decode()


class Cri:
    def __init__(self, socket):
        self._channel = grpc.insecure_channel(f"unix:{socket}")

    def call(self, name, fields, service="RuntimeService"):
        return self._channel.unary_unary(f"/runtime.v1.{service}/{name}")(message(fields), timeout=900, wait_for_ready=True)

    def pull(self, reference):
        self.call("PullImage", {1: message({1: reference})}, "ImageService")

    def wait(self):
        """Waits until it answers: containerd does so earlier."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.call("Version", {})
            except grpc.RpcError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


class Pod:
    def __init__(self, cri, logs):
        self._cri = cri
        self.log = os.path.join(logs, "0.log")
        # metadata: name, uid, namespace. The node's network, as with `hostNetwork: true`.
        self._config = message({1: message({1: "bench", 2: "bench", 3: "default"}), 3: logs,
                                8: message({2: message({1: message({1: NODE})})})})
        self.sandbox = self.container = None

    def start(self, reference):
        self.sandbox = first_text(self._cri.call("RunPodSandbox", {1: self._config}))
        # What kubelet asks for by default: the sandbox's network, processes of its own.
        own = message({2: message({3: message({1: NODE, 2: CONTAINER})})})
        config = message({1: message({1: "bench"}), 2: message({1: reference}), 11: "0.log", 15: own})
        self.container = first_text(self._cri.call("CreateContainer", {1: self.sandbox, 2: config, 3: self._config}))
        self._cri.call("StartContainer", {1: self.container})

    def end(self):
        if self.container:
            self._cri.call("StopContainer", {1: self.container})
            self._cri.call("RemoveContainer", {1: self.container})
        if self.sandbox:
            self._cri.call("StopPodSandbox", {1: self.sandbox})
            self._cri.call("RemovePodSandbox", {1: self.sandbox})


def say(text):
    print(text, flush=True)


def follow(path):
    """Says the lines that the container has written until our stdin says something else. A line of the log is: time, stream, F or P, text."""
    log, rest = None, ""
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        if log is None and os.path.exists(path):
            log = open(path)
        rest += log.read() if log else ""
        *lines, rest = rest.split("\n")
        for line in lines:
            say(line.split(" ", 3)[3])


def main():
    socket, sandbox = sys.argv[1:]
    cri = Cri(socket)
    cri.wait()
    cri.pull(sandbox)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(socket)) as logs:
        pod = Pod(cri, logs)
        try:
            say("up")
            if reference := sys.stdin.readline().strip():
                cri.pull(reference)
                say("pulled")
                pod.start(reference)
                say("started")
                follow(pod.log)
        finally:
            pod.end()


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"CRI: {error.code().name}: {error.details()}")
