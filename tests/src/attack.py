# Tries to get rid of capture, from wherever it is run, and tells what came of each try: a line of
# JSON, the name of an error or what was gained. Arguments: a JSON object, see attacks.rs.
import ctypes, errno, json, os, platform, socket, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
SYS_BPF = {"x86_64": 321}.get(platform.machine(), 280)
PROG_LOAD, OBJ_GET, PROG_DETACH = 5, 7, 9
PROG_NEXT, MAP_NEXT, LINK_NEXT = 11, 12, 31
PROG_BY_ID, MAP_BY_ID, LINK_BY_ID = 13, 14, 30
HOOKS = [3, 10, 11, 14, 15, 19, 20, 21, 29, 30]
SK_LOOKUP = 36
target = json.loads(sys.argv[1])


def bpf(command, attr):
    buffer = ctypes.create_string_buffer(attr, max(len(attr), 128))
    result = libc.syscall(SYS_BPF, command, buffer, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return result, buffer.raw


def ids(command):
    found, last = [], 0
    while True:
        try:
            last = struct.unpack("=II", bpf(command, struct.pack("=II", last, 0))[1][:8])[1]
        except OSError:
            return found
        found.append(last)


if target == "ids":
    print(json.dumps({"links": ids(LINK_NEXT), "maps": ids(MAP_NEXT), "programs": ids(PROG_NEXT)}))
    sys.exit()


def by_id(command, numbers):
    """The worst that came of any of them."""
    outcome = "nothing to try"
    for number in numbers:
        try:
            fd, _ = bpf(command, struct.pack("=III", number, 0, 0))
            os.close(fd)
            return f"got {number}"
        except OSError as error:
            outcome = errno.errorcode[error.errno]
            if outcome not in ("EPERM", "ENOENT"):
                return outcome
    return outcome


def detach(path, hook):
    fd = os.open(path, os.O_RDONLY)
    bpf(PROG_DETACH, struct.pack("=IIII", fd, 0, hook, 0))
    return "detached"


def load():
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    bpf(PROG_LOAD, struct.pack("=IIQQIIQII16sII", 18, 2, ctypes.addressof(code),
                               ctypes.addressof(licence), 0, 0, 0, 0, 0, b"attack", 0, 10))
    return "loaded"


def open_pin(name):
    path = ctypes.create_string_buffer(os.path.join(target["pins"], name).encode())
    bpf(OBJ_GET, struct.pack("=QII", ctypes.addressof(path), 0, 0))
    return "opened"


def call(call):
    call()
    return "done"


def write(path, text):
    with open(path, "w") as file:
        file.write(text)
    return "written"


def ask():
    client = socket.socket(socket.AF_UNIX)
    client.connect(target["admin"])
    client.sendall(b'"status"\n')
    return client.recv(4096).decode()[:60]


def connect(address, device=None, mark=None, fast=False):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(5)
    if device:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    if mark:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    if fast:
        client.sendto(b"x", socket.MSG_FASTOPEN, tuple(address))
    else:
        client.connect(tuple(address))
    return "connected"


def from_below():
    below = os.path.join(target["cgroup"], "below")
    os.makedirs(below, exist_ok=True)
    write(os.path.join(below, "cgroup.procs"), str(os.getpid()))
    return "moved, and " + attempt(lambda: connect(target["secret"]))


def enter(path):
    fd = os.open(path, os.O_RDONLY)
    if libc.setns(fd, 0) < 0:
        raise OSError(ctypes.get_errno(), "setns")
    return "entered"


def attempt(what):
    try:
        return what()
    except TimeoutError:
        return "ETIMEDOUT"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


secret = target["secret"]
tries = {
    "link by id": lambda: by_id(LINK_BY_ID, target["links"]),
    "map by id": lambda: by_id(MAP_BY_ID, target["maps"]),
    "program by id": lambda: by_id(PROG_BY_ID, target["programs"]),
    "load a program": load,
    "open a pin": lambda: open_pin("WORKLOADS"),
    "remove a pin": lambda: call(lambda: os.unlink(os.path.join(target["pins"], "WORKLOADS"))),
    "list the pins": lambda: str(os.listdir(target["pins"])),
    "move the pins away": lambda: call(lambda: os.rename(target["pins"], target["pins"] + "-gone")),
    "ask the agent": ask,
    "leave for the root cgroup": lambda: write(os.path.join(target["root"], "cgroup.procs"), str(os.getpid())),
    "leave for another cgroup": lambda: write(os.path.join(target["other"], "cgroup.procs"), str(os.getpid())),
    "enter another's netns": lambda: enter(target["netns"]),
    "connect": lambda: connect(secret),
    "connect by a device": lambda: connect(secret, device="eth0"),
    "connect with a mark": lambda: connect(secret, mark=1337),
    "connect by TFO": lambda: connect(secret, fast=True),
    "connect v4-mapped": lambda: connect(["::ffff:" + secret[0], secret[1]]),
}
for hook in HOOKS:
    tries[f"detach {hook}"] = lambda hook=hook: detach(target["cgroup"], hook)
tries["detach sk_lookup"] = lambda: detach("/proc/self/ns/net", SK_LOOKUP)
# Last: it moves.
tries["connect from a cgroup below"] = from_below
print(json.dumps({name: attempt(what) for name, what in tries.items()}))
