#   detach PIN                       has a pinned link be attached to nothing (BPF_LINK_DETACH)
#   update PIN                       has a pinned link for connect4 run a program that lets everything
#                                    pass, with the maps of the one that it runs
#   wipe PIN CGROUP_ID               overwrites a cgroup's storage in a pinned map with zeros
# else attaches a BPF program that counts and lets everything pass (returns 1), keeps it until standard
# input ends, and answers every line there with what it has counted:
#   cgroup PATH ATTACH_TYPE FLAGS    calls, as BPF_PROG_ATTACH has them
#   bytes PATH ATTACH_TYPE FLAGS     bytes of packets, as systemd's IP accounting does
#   balancer PATH FLAGS VIP:PORT BACKEND:PORT
#                                    connections (connect4) to a service address, which it leads to a
#                                    backend, as Cilium's load balancer for sockets does
#   netns PATH                       sk_lookup, by a link; counts nothing
#   link PATH ATTACH_TYPE NAME [PIN] a program of that name, by a link to a cgroup, which may be pinned;
#                                    counts nothing
# Of a link it tells the kernel's number.
import ctypes, os, platform, resource, socket, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
# Before kernel 5.11 programs count as locked memory.
try:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
except (OSError, ValueError):
    pass
SYS_BPF = {"x86_64": 321}.get(platform.machine(), 280)
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, PROG_LOAD, OBJ_PIN, OBJ_GET = 0, 1, 2, 5, 6, 7
PROG_ATTACH, PROG_DETACH, PROG_BY_ID, MAP_BY_ID, INFO = 8, 9, 13, 14, 15
HASH, ARRAY = 1, 2
LINK_CREATE, LINK_UPDATE, LINK_DETACH = 28, 29, 34
CGROUP_SKB, CGROUP_SOCK_ADDR, SK_LOOKUP = 8, 18, 30
CONNECT4, SK_LOOKUP_ATTACH = 10, 36


def bpf(command, attr):
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = libc.syscall(SYS_BPF, command, buffer, len(attr))
    if result < 0:
        number = ctypes.get_errno()
        sys.exit(f"bpf({command}): {os.strerror(number)}")
    return result


def op(code, registers=0, offset=0, value=0):
    """An instruction; `registers`: the source's number in the upper half, the destination's below."""
    return struct.pack("<BBhi", code, registers, offset, value)


RETURN_1 = op(0xB7, 0, 0, 1) + op(0x95)


def create_map(kind, name):
    return bpf(MAP_CREATE, struct.pack("=IIIIIII16s", kind, 4, 4, 1, 0, 0, 0, name))


def load(kind, attach_type, body=b"", name="foreign", maps=None):
    """Its maps, unless they are given: one of a kind as `WORKLOADS` is, and one that is only called so."""
    maps = maps or [create_map(ARRAY, b"foreign"), create_map(HASH, b"WORKLOADS")]
    # r3 = the map, which nothing is done with; the rest finds r1 as it was
    code = b"".join(op(0x18, 0x13, 0, number) + op(0) for number in maps) + body + RETURN_1
    count, code = len(code) // 8, ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("=IIQQIIQII16sII", kind, count, ctypes.addressof(code),
                       ctypes.addressof(licence), 0, 0, 0, 0, 0, name.encode(), 0, attach_type)
    return bpf(PROG_LOAD, attr)


class Counter:
    """A number that a program adds to."""

    def __init__(self):
        self.map = bpf(MAP_CREATE, struct.pack("=IIIII", ARRAY, 4, 8, 1, 0))

    def add(self):
        """Adds r3; r2 is lost."""
        # r2 = &value, in two halves (BPF_PSEUDO_MAP_VALUE); lock *r2 += r3
        return op(0x18, 0x22, 0, self.map) + op(0) + op(0xDB, 0x32)

    def read(self):
        key = ctypes.create_string_buffer(struct.pack("=I", 0), 4)
        value = ctypes.create_string_buffer(8)
        bpf(MAP_LOOKUP, struct.pack("=QQQQ", self.map, ctypes.addressof(key),
                                    ctypes.addressof(value), 0))
        return struct.unpack("=Q", value.raw)[0]


def endpoint(text):
    """An address and a port as struct bpf_sock_addr has them: in network byte order."""
    address, port = text.rsplit(":", 1)
    return struct.unpack("=i", socket.inet_aton(address))[0], socket.htons(int(port))


def balancer(counter, vip, backend):
    (vip, vip_port), (backend, port) = endpoint(vip), endpoint(backend)
    # r1: the context; its fields user_ip4 and user_port are at 4 and 24.
    led = (op(0xB4, 2, 0, backend) + op(0x63, 0x21, 4) + op(0xB4, 2, 0, port) + op(0x63, 0x21, 24)
           + op(0xB7, 3, 0, 1) + counter.add())
    steps = len(led) // 8
    return (op(0x61, 0x12, 4) + op(0x56, 2, steps + 2, vip)
            + op(0x61, 0x12, 24) + op(0x56, 2, steps, vip_port) + led)


def done(more="", counter=None):
    print("ready", more, flush=True)
    for _ in sys.stdin:
        print(counter.read() if counter else 0, flush=True)


def opened(pin):
    path = ctypes.create_string_buffer(pin.encode())
    return bpf(OBJ_GET, struct.pack("=QII", ctypes.addressof(path), 0, 0))


def link_info(link):
    """Its number, and its program's."""
    info = ctypes.create_string_buffer(64)
    bpf(INFO, struct.pack("=IIQ", link, 64, ctypes.addressof(info)))
    return struct.unpack_from("=II", info.raw, 4)


def program_maps(program):
    """See struct bpf_prog_info: their count is its field at 52, a pointer to their numbers follows."""
    numbers = (ctypes.c_uint32 * 64)()
    info = ctypes.create_string_buffer(64)
    struct.pack_into("=IQ", info, 52, len(numbers), ctypes.addressof(numbers))
    bpf(INFO, struct.pack("=IIQ", program, len(info), ctypes.addressof(info)))
    count = struct.unpack_from("=I", info.raw, 52)[0]
    return [bpf(MAP_BY_ID, struct.pack("=III", number, 0, 0)) for number in numbers[:count]]


if sys.argv[1] == "detach":
    bpf(LINK_DETACH, struct.pack("=I", opened(sys.argv[2])))
    sys.exit()

if sys.argv[1] == "update":
    link = opened(sys.argv[2])
    _, number = link_info(link)
    # With another cgroup storage map than before newer kernels refuse it.
    maps = program_maps(bpf(PROG_BY_ID, struct.pack("=III", number, 0, 0)))
    bpf(LINK_UPDATE, struct.pack("=IIII", link, load(CGROUP_SOCK_ADDR, CONNECT4, maps=maps), 0, 0))
    sys.exit()

if sys.argv[1] == "wipe":
    key = ctypes.create_string_buffer(struct.pack("=Q", int(sys.argv[3])), 8)
    # More than any value has.
    value = ctypes.create_string_buffer(4096)
    bpf(MAP_UPDATE, struct.pack("=IIQQQ", opened(sys.argv[2]), 0, ctypes.addressof(key),
                                ctypes.addressof(value), 0))
    sys.exit()

target = os.open(sys.argv[2], os.O_RDONLY)
if sys.argv[1] == "netns":
    program = load(SK_LOOKUP, SK_LOOKUP_ATTACH)
    link = bpf(LINK_CREATE, struct.pack("=IIII", program, target, SK_LOOKUP_ATTACH, 0))
    done(link_info(link)[0])
    sys.exit()
if sys.argv[1] == "link":
    attach_type = int(sys.argv[3])
    program = load(CGROUP_SOCK_ADDR, attach_type, name=sys.argv[4])
    link = bpf(LINK_CREATE, struct.pack("=IIII", program, target, attach_type, 0))
    for pin in sys.argv[5:]:
        path = ctypes.create_string_buffer(pin.encode())
        bpf(OBJ_PIN, struct.pack("=QII", ctypes.addressof(path), link, 0))
    done(link_info(link)[0])
    sys.exit()

counter = Counter()
if sys.argv[1] == "balancer":
    attach_type, flags = CONNECT4, int(sys.argv[3])
    program = load(CGROUP_SOCK_ADDR, CONNECT4, balancer(counter, *sys.argv[4:6]))
else:
    attach_type, flags = int(sys.argv[3]), int(sys.argv[4])
    is_skb = sys.argv[1] == "bytes"
    # r3: the first field of struct __sk_buff, its length; or one call.
    amount = op(0x61, 0x13, 0) if is_skb else op(0xB7, 3, 0, 1)
    program = load(CGROUP_SKB if is_skb else CGROUP_SOCK_ADDR, attach_type, amount + counter.add())
bpf(PROG_ATTACH, struct.pack("=IIII", target, program, attach_type, flags))
done(counter=counter)
bpf(PROG_DETACH, struct.pack("=IIII", target, program, attach_type, 0))
