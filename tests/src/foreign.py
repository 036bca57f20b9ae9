#   detach PIN                       has a pinned link be attached to nothing (BPF_LINK_DETACH)
#   update PIN ATTACH_TYPE           has a pinned link run a program that does nothing
# else attaches a BPF program that does nothing (returns 1) and keeps it until standard input ends:
#   cgroup PATH ATTACH_TYPE FLAGS    as BPF_PROG_ATTACH has them
#   netns PATH                       sk_lookup, by a link
import ctypes, os, platform, resource, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
# Before kernel 5.11 programs count as locked memory.
try:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
except (OSError, ValueError):
    pass
SYS_BPF = {"x86_64": 321}.get(platform.machine(), 280)
PROG_LOAD, OBJ_GET, PROG_ATTACH, PROG_DETACH = 5, 7, 8, 9
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


def load(kind, attach_type):
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("=IIQQIIQII16sII", kind, 2, ctypes.addressof(code),
                       ctypes.addressof(licence), 0, 0, 0, 0, 0, b"foreign", 0, attach_type)
    return bpf(PROG_LOAD, attr)


def done():
    print("ready", flush=True)
    sys.stdin.read()


if sys.argv[1] == "detach":
    path = ctypes.create_string_buffer(sys.argv[2].encode())
    link = bpf(OBJ_GET, struct.pack("=QII", ctypes.addressof(path), 0, 0))
    bpf(LINK_DETACH, struct.pack("=I", link))
    sys.exit()

if sys.argv[1] == "update":
    path = ctypes.create_string_buffer(sys.argv[2].encode())
    link = bpf(OBJ_GET, struct.pack("=QII", ctypes.addressof(path), 0, 0))
    program = load(CGROUP_SOCK_ADDR, int(sys.argv[3]))
    bpf(LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0))
    sys.exit()

target = os.open(sys.argv[2], os.O_RDONLY)
if sys.argv[1] == "cgroup":
    attach_type, flags = int(sys.argv[3]), int(sys.argv[4])
    program = load(CGROUP_SOCK_ADDR, attach_type)
    bpf(PROG_ATTACH, struct.pack("=IIII", target, program, attach_type, flags))
    done()
    bpf(PROG_DETACH, struct.pack("=IIII", target, program, attach_type, 0))
else:
    program = load(SK_LOOKUP, SK_LOOKUP_ATTACH)
    link = bpf(LINK_CREATE, struct.pack("=IIII", program, target, SK_LOOKUP_ATTACH, 0))
    done()
