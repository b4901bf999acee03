"""Blocking sockets of Python: a threading server and clients that use makefile, sendall, sendfile,
recv_into, timeouts and select.

    threads_echo.py serve PORT
    threads_echo.py work  PORT FILE
"""

import hashlib
import select
import signal
import socket
import socketserver
import sys
import threading

HOST = "10.77.0.1"


class Lines(socketserver.StreamRequestHandler):
    """Answers `sum N` with the digest of the N bytes that follow, `echo N` with the bytes."""

    def handle(self):
        while line := self.rfile.readline():
            word, count = line.split()
            data = self.rfile.read(int(count))
            if word == b"echo":
                self.wfile.write(data)
            else:
                self.wfile.write(hashlib.sha256(data).hexdigest().encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def serve(port):
    server = Server((HOST, port), Lines)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


def receive(sock, count):
    data = bytearray(count)
    view, filled = memoryview(data), 0
    while filled < count:
        filled += sock.recv_into(view[filled:])
    return bytes(data)


def one(port, path, number, results):
    digest = hashlib.sha256()
    with socket.create_connection((HOST, port), timeout=30) as sock:
        stream = sock.makefile("rwb")
        for size in (0, 1, 100, 10_000, 1_000_000):
            stream.write(b"echo %d\n" % size + bytes([number]) * size)
            stream.flush()
            digest.update(stream.read(size))
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            sock.sendall(b"sum %d\n" % size)
            sock.sendfile(file)
        digest.update(stream.readline())
        sock.settimeout(0.05)
        try:
            sock.recv(1)
            digest.update(b"something came")
        except TimeoutError:
            digest.update(b"nothing came")
        sock.setblocking(False)
        sock.send(b"echo 5\nhello")
        ready = select.select([sock], [], [], 30)[0]
        digest.update(b"%d" % len(ready))
        sock.setblocking(True)
        digest.update(receive(sock, 5))
    results[number] = digest.hexdigest()


def work(port, path):
    results = {}
    threads = [threading.Thread(target=one, args=(port, path, n, results)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("digest", hashlib.sha256(repr(sorted(results.items())).encode()).hexdigest(), len(results))


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    work(int(sys.argv[2]), sys.argv[3])
