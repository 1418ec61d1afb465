"""
A file system that hangs on demand, like a broken or distant disk.

C{python3 stuck.py FILE FOLDER [PROCESS]} shows one file in a folder, and then prints a line. With a
process, it uses that process's mount namespace. After SIGUSR1 it answers no request, and prints a
line for each: even SIGKILL does not end a process that waits, before this program ends.
"""

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
from pathlib import Path

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _RELEASE, _FLUSH, _INIT = 1, 2, 3, 14, 15, 18, 25, 26
"""The requests of linux/fuse.h that a reader makes."""

_FILE = 2
"""The file's inode number; the folder's is 1."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _attributes(node: int, size: int) -> bytes:
    """Pack struct fuse_attr, whose layout has long been stable."""
    mode = stat.S_IFREG | 0o444 if node == _FILE else stat.S_IFDIR | 0o555
    return struct.pack("<6Q10I", node, size, 0, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 512, 0)


def _answer(request: bytes, name: bytes, text: bytes) -> bytes:
    """
    The answer to a request.

    @raise OSError: the answer is an error.
    """
    kind, node, body = *struct.unpack_from("<4xI8xQ", request), request[40:]
    size = len(text)
    if kind == _INIT:
        return struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 1, 1, 4096, 1, 0, 0, *[0] * 8)
    if kind == _LOOKUP and body.rstrip(b"\0") == name:
        return struct.pack("<5Q", _FILE, 0, 0, 0, 0) + _attributes(_FILE, size)
    if kind == _GETATTR:
        return struct.pack("<2Q", 0, 0) + _attributes(node, size)
    if kind == _OPEN:
        return struct.pack("<Q2I", 0, 1, 0)  # bypass the page cache
    if kind == _READ:
        start, length = struct.unpack_from("<8xQI", body)
        return text[start : start + length]
    if kind in (_RELEASE, _FLUSH):
        return b""
    raise OSError(errno.ENOENT if kind == _LOOKUP else errno.ENOSYS, "")


def main(file: str, folder: str, process: str = "") -> None:
    """Show a file until the folder is unmounted."""
    name, text = os.fsencode(Path(file).name), Path(file).read_bytes()
    device = os.open("/dev/fuse", os.O_RDWR)
    if process:
        _check(_libc.setns(os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY), 0))
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    _check(_libc.mount(b"stuck", folder.encode(), b"fuse", 0, options.encode()))
    stuck: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: stuck.append(number))
    print("mounted", flush=True)
    while True:
        try:
            request = os.read(device, 1 << 20)
        except OSError as why:
            if why.errno == errno.ENODEV:
                return
            continue  # the request was withdrawn
        (kind,) = struct.unpack_from("<4xI", request)
        if stuck or kind == _FORGET:
            # SIGKILL could withdraw a request that is not yet read from the kernel.
            if kind in (_LOOKUP, _GETATTR, _OPEN, _READ):
                print("asked", flush=True)
            continue
        try:
            number, body = 0, _answer(request, name, text)
        except OSError as why:
            number, body = why.errno or 0, b""
        head = struct.pack("<Ii", 16 + len(body), -number) + request[8:16]
        os.write(device, head + body)


if __name__ == "__main__":
    main(*sys.argv[1:])
