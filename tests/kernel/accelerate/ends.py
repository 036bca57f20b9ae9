# Both ends of connections that the workload makes to its proxy, in one process: the listener on
# 0.0.0.0:15001 is the proxy's, and the call of a service is led to it.
import hashlib, os, random, select, socket, struct, sys, threading

SERVICE = ("10.96.0.1", 80)
DEADLINE = 30

def wait(sock, events, what):
    poll = select.poll()
    poll.register(sock, events)
    if not poll.poll(DEADLINE * 1000):
        raise SystemExit(f"waited in vain for {what}")

def listener(*options):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for level, name, value in options:
        sock.setsockopt(level, name, value)
    sock.bind(("0.0.0.0", 15001))
    sock.listen(128)
    return sock

def call(blocking=False, *options):
    sock = socket.socket()
    for level, name, value in options:
        sock.setsockopt(level, name, value)
    sock.setblocking(blocking)
    try:
        sock.connect(SERVICE)
    except BlockingIOError:
        pass
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock

def accept(listening):
    wait(listening, select.POLLIN, "a connection")
    sock, _ = listening.accept()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock

# An application's end and a proxy's. The listener goes first, so that another can come.
def pair(blocking=False, options=(), listening=()):
    server = listener(*listening)
    app = call(blocking, *options)
    proxy = accept(server)
    server.close()
    return app, proxy

def send(sock, data):
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view):]
        except BlockingIOError:
            wait(sock, select.POLLOUT, f"room for {len(view)} bytes")

def receive(sock, size):
    parts = []
    while size:
        try:
            part = sock.recv(min(size, 1 << 20))
        except BlockingIOError:
            wait(sock, select.POLLIN, f"{size} more bytes")
            continue
        if not part:
            raise SystemExit(f"it ended before {size} more bytes")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

def end(sock):
    while True:
        try:
            return sock.recv(1)
        except BlockingIOError:
            wait(sock, select.POLLIN, "the end")
        except ConnectionResetError:
            return b"reset"

def turn(app, proxy, there=b"question", back=b"answer"):
    send(app, there)
    assert receive(proxy, len(there)) == there
    send(proxy, back)
    assert receive(app, len(back)) == back

# As much as there is room for, of which every byte tells its place. After so many pieces something
# else is done in between.
def fill(sock, piece, pieces, between):
    sent = 0
    while True:
        for _ in range(pieces):
            try:
                sent += sock.send(pattern(sent, piece))
            except BlockingIOError:
                return sent
        between()

def pattern(start, size):
    word = b"".join(struct.pack(">I", at // 4) for at in range(start // 4 * 4, start + size + 4, 4))
    return word[start % 4:start % 4 + size]

# Waits for the test to go on.
def pause(word):
    print(word, flush=True)
    if not sys.stdin.readline():
        raise SystemExit("the test is gone")
