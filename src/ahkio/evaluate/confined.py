"""Confines itself, then runs a program: `python -I -S confined.py program.py LIMITS`, as `sandbox.py` calls it.

Namespaces of its own take away the network, other processes and shared memory; every file system is made read-only but
a small one in memory, where the program runs; a user without rights owns nothing; bounds of the kernel do the rest.
Exits with 0 or 1 as the program did or did not, with 91 where its time was over, and with 90 and a word on standard
error where it can't confine.

Imports nothing but the standard library, and nothing of ahkio: it is run by its path.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

REFUSED, OUT_OF_TIME = 90, 91
NOBODY = 65534
NEW = {"user": 0x10000000, "mount": 0x00020000, "net": 0x40000000, "pid": 0x20000000, "ipc": 0x08000000}
NO_SETUID, NO_DEVICES, BIND, PRIVATE = 2, 4, 1 << 12, 1 << 18 | 1 << 14  # of mount(); private all the way down
READ_ONLY, RECURSIVE = 1, 0x8000  # of mount_setattr()
MOUNT_SETATTR, HERE = 442, -100
SET_DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38
SCRATCH = "/tmp"
HIDDEN = ("/root", "/home", "/run", "/dev/shm", SCRATCH)  # people's files, and sockets of other programs

libc = ctypes.CDLL(None, use_errno=True)


def main(program: str, limits: dict[str, Any]) -> int:
    source = Path(program).read_bytes()
    if limits["isolated"]:
        try:
            leave(limits)
        except OSError as error:
            print(error, file=sys.stderr)
            return REFUSED
    child = os.fork()
    if child == 0:
        os._exit(stand_by(source, Path(program), limits))
    signal.signal(signal.SIGALRM, lambda *_: os._exit(OUT_OF_TIME))  # and with this process its child
    signal.alarm(limits["clock_seconds"])
    return ended(child)


def ended(child: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return OUT_OF_TIME if code in (OUT_OF_TIME, -signal.SIGXCPU) else min(abs(code), 1)


def stand_by(source: bytes, program: Path, limits: dict[str, Any]) -> int:
    """Wait for the program, as the first process of its namespace: whose end is that of all in it."""
    libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    child = os.fork()
    if child == 0:
        run(source, program, limits)
    return ended(child)


def leave(limits: dict[str, Any]) -> None:
    """Go where there is no network, no other process in sight, and nothing to write to. Raises OSError."""
    enter_namespaces()
    call("mount", None, b"/", None, PRIVATE, None)
    interpreter = Path(sys.executable)
    needed = {sys.base_prefix, str(interpreter.parents[1]), str(interpreter.resolve().parents[1])}
    kept = {path: os.open(path, os.O_PATH) for path in needed if path.startswith(tuple(f"{one}/" for one in HIDDEN))}
    options = f"size={limits['disk_bytes']},nr_inodes=4096,mode=1777".encode()
    for place in filter(os.path.isdir, HIDDEN):
        call("mount", b"tmpfs", place.encode(), b"tmpfs", NO_SETUID | NO_DEVICES, options)
    for path, folder in kept.items():
        os.makedirs(path, exist_ok=True)
        call("mount", f"/proc/self/fd/{folder}".encode(), path.encode(), None, BIND, None)
    set_attributes("/", READ_ONLY | NO_SETUID, 0, RECURSIVE)
    set_attributes(SCRATCH, 0, READ_ONLY, 0)
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def enter_namespaces() -> None:
    """Leave all namespaces but that of names and clocks. A process that stayed outside says who is who inside: this
    user alone, and where that is root, also nobody."""
    user, group, me = os.getuid(), os.getgid(), os.getpid()
    reading, writing = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(writing)
        if not os.read(reading, 1):
            os._exit(1)
        others = "" if user else f"\n{NOBODY} {NOBODY} 1"
        if user:
            Path(f"/proc/{me}/setgroups").write_text("deny")
        Path(f"/proc/{me}/uid_map").write_text(f"{user} {user} 1{others}")
        Path(f"/proc/{me}/gid_map").write_text(f"{group} {group} 1{others}")
        os._exit(0)
    call("unshare", sum(NEW.values()))
    os.write(writing, b"x")
    if os.waitpid(helper, 0)[1]:
        raise OSError("the user can't be mapped")


def set_attributes(path: str, on: int, off: int, how: int) -> None:
    attributes = (ctypes.c_uint64 * 4)(on, off, 0, 0)
    call("syscall", MOUNT_SETATTR, HERE, path.encode(), how, ctypes.byref(attributes), ctypes.sizeof(attributes))


def call(name: str, *arguments: Any) -> None:
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def run(source: bytes, program: Path, limits: dict[str, Any]) -> None:
    """Become the program, within its bounds."""
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if limits["isolated"]:
        program = Path(SCRATCH, program.name)
        program.write_bytes(source)
    os.chdir(program.parent)
    bounds = {
        resource.RLIMIT_CPU: limits["seconds"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["disk_bytes"],
        resource.RLIMIT_NOFILE: limits["files"],
        resource.RLIMIT_NPROC: limits["processes"],
        resource.RLIMIT_CORE: 0,
    }
    for bound, value in bounds.items():
        resource.setrlimit(bound, (value, value + (bound == resource.RLIMIT_CPU)))  # a second between warning and end
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads count as processes
    os.execv(sys.executable, [sys.executable, "-I", str(program)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))
