"""delay.py ADDRESS TARGET MILLISECONDS: forwards TCP connections, each byte so much later, in both directions.

For kernels without netem. What it cannot show is the slow start of a long path: windows are those of the short one. A new
connection costs two delays before its first byte, as a handshake does.
"""
import queue
import socket
import sys
import threading
import time

PIECE = 256 << 10
HELD = 512  # pieces under way in one direction: more than any link here holds


def forward(source, sink, delay, first):
    """Copies until the source ends; `first` is what the handshake would have cost."""
    held = queue.Queue(HELD)

    def send():
        while (due := held.get()) is not None:
            due, piece = due
            if (left := due - time.monotonic()) > 0:
                time.sleep(left)
            try:
                sink.sendall(piece)
            except OSError:
                break
        try:
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        while held.get() is not None:  # nobody wants it any more, and the reader must not wait for room
            pass

    def ended():
        held.put(None)
        held.put(None)

    threading.Thread(target=send, daemon=True).start()
    try:
        while piece := source.recv(PIECE):
            held.put((time.monotonic() + delay + first, piece))
            first = 0
    except OSError:
        pass
    ended()


def serve(client, target, delay):
    try:
        server = socket.create_connection(target)
    except OSError:
        client.close()
        return
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ways = [threading.Thread(target=forward, args=way, daemon=True)
            for way in ((client, server, delay, 2 * delay), (server, client, delay, 0))]
    for way in ways:
        way.start()


def endpoint(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


def main():
    at, target, delay = endpoint(sys.argv[1]), endpoint(sys.argv[2]), float(sys.argv[3]) / 1000
    with socket.create_server(at, backlog=256) as listener:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client, target, delay), daemon=True).start()


if __name__ == "__main__":
    main()
