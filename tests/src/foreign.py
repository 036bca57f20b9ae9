#   detach PIN                       has a pinned link be attached to nothing (BPF_LINK_DETACH)
#   update PIN OTHER                 has a pinned link run the program of another pinned link
#   wipe PIN CGROUP_ID               overwrites a cgroup's storage in a pinned map with zeros
# else attaches a BPF program that does nothing (returns 1) and keeps it until standard input ends:
#   cgroup PATH ATTACH_TYPE FLAGS    as BPF_PROG_ATTACH has them
#   netns PATH                       sk_lookup, by a link
#   link PATH ATTACH_TYPE NAME [PIN] a program of that name, by a link to a cgroup, which may be pinned
# Of a link it tells the kernel's number.
import ctypes, os, platform, resource, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
# Before kernel 5.11 programs count as locked memory.
try:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
except (OSError, ValueError):
    pass
SYS_BPF = {"x86_64": 321}.get(platform.machine(), 280)
MAP_CREATE, MAP_UPDATE, PROG_LOAD, OBJ_PIN, OBJ_GET, PROG_ATTACH, PROG_DETACH = 0, 2, 5, 6, 7, 8, 9
PROG_BY_ID, INFO = 13, 15
HASH, ARRAY = 1, 2
LINK_CREATE, LINK_UPDATE, LINK_DETACH = 28, 29, 34
CGROUP_SOCK_ADDR, SK_LOOKUP = 18, 30
SK_LOOKUP_ATTACH = 36


def bpf(command, attr):
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = libc.syscall(SYS_BPF, command, buffer, len(attr))
    if result < 0:
        number = ctypes.get_errno()
        sys.exit(f"bpf({command}): {os.strerror(number)}")
    return result


def create_map(kind, name):
    return bpf(MAP_CREATE, struct.pack("=IIIIIII16s", kind, 4, 4, 1, 0, 0, 0, name))


def load(kind, attach_type, name="foreign"):
    """It has maps: one of a kind as `WORKLOADS` is, and one that is only called so."""
    maps = [create_map(ARRAY, b"foreign"), create_map(HASH, b"WORKLOADS")]
    # r1 = the map; ...; r0 = 1; exit
    code = b"".join(struct.pack("<BBhiQ", 0x18, 0x11, 0, number, 0) for number in maps)
    code += struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)
    count, code = len(code) // 8, ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("=IIQQIIQII16sII", kind, count, ctypes.addressof(code),
                       ctypes.addressof(licence), 0, 0, 0, 0, 0, name.encode(), 0, attach_type)
    return bpf(PROG_LOAD, attr)


def done(more=""):
    print("ready", more, flush=True)
    sys.stdin.read()


def opened(pin):
    path = ctypes.create_string_buffer(pin.encode())
    return bpf(OBJ_GET, struct.pack("=QII", ctypes.addressof(path), 0, 0))


def link_info(link):
    """Its number, and its program's."""
    info = ctypes.create_string_buffer(64)
    bpf(INFO, struct.pack("=IIQ", link, 64, ctypes.addressof(info)))
    return struct.unpack_from("=II", info.raw, 4)


if sys.argv[1] == "detach":
    bpf(LINK_DETACH, struct.pack("=I", opened(sys.argv[2])))
    sys.exit()

if sys.argv[1] == "update":
    _, number = link_info(opened(sys.argv[3]))
    program = bpf(PROG_BY_ID, struct.pack("=III", number, 0, 0))
    bpf(LINK_UPDATE, struct.pack("=IIII", opened(sys.argv[2]), program, 0, 0))
    sys.exit()

if sys.argv[1] == "wipe":
    key = ctypes.create_string_buffer(struct.pack("=Q", int(sys.argv[3])), 8)
    # More than any value has.
    value = ctypes.create_string_buffer(4096)
    bpf(MAP_UPDATE, struct.pack("=IIQQQ", opened(sys.argv[2]), 0, ctypes.addressof(key),
                                ctypes.addressof(value), 0))
    sys.exit()

target = os.open(sys.argv[2], os.O_RDONLY)
if sys.argv[1] == "cgroup":
    attach_type, flags = int(sys.argv[3]), int(sys.argv[4])
    program = load(CGROUP_SOCK_ADDR, attach_type)
    bpf(PROG_ATTACH, struct.pack("=IIII", target, program, attach_type, flags))
    done()
    bpf(PROG_DETACH, struct.pack("=IIII", target, program, attach_type, 0))
elif sys.argv[1] == "link":
    attach_type = int(sys.argv[3])
    program = load(CGROUP_SOCK_ADDR, attach_type, sys.argv[4])
    link = bpf(LINK_CREATE, struct.pack("=IIII", program, target, attach_type, 0))
    for pin in sys.argv[5:]:
        path = ctypes.create_string_buffer(pin.encode())
        bpf(OBJ_PIN, struct.pack("=QII", ctypes.addressof(path), link, 0))
    done(link_info(link)[0])
else:
    program = load(SK_LOOKUP, SK_LOOKUP_ATTACH)
    link = bpf(LINK_CREATE, struct.pack("=IIII", program, target, SK_LOOKUP_ATTACH, 0))
    done(link_info(link)[0])
