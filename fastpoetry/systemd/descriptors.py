"""
The file descriptors that systemd passes to this process: the sockets of C{.socket} units, and the
descriptors that an earlier process left in the store.

This module gives descriptors out. It does not know what they are used for.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from twisted.logger import Logger

from fastpoetry.systemd.stderr import escaped, refusalLine

__all__ = ["AdoptError", "Descriptor", "Inherited", "inherited", "refusal"]

_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
_NOTHING = (
    "no descriptor was passed: a .socket unit or systemd-socket-activate must pass one; "
    "it may not have Accept=yes; if it has a new address, restart it; "
    "else=ENDPOINT needs no descriptor"
)

_log = Logger()

# The families that Twisted serves, each with the format of its addresses.
_FAMILIES = {
    socket.AF_UNIX: "{!r}",
    socket.AF_INET: "{0[0]}:{0[1]}",
    socket.AF_INET6: "[{0[0]}]:{0[1]}",
}

_FILES = {
    stat.S_IFIFO: "is a FIFO",
    stat.S_IFCHR: "is a special file",
    stat.S_IFBLK: "is a special file",
    stat.S_IFDIR: "is a folder",
}

_WANTED = {
    socket.SOCK_STREAM: "only listening stream sockets can be adopted",
    socket.SOCK_DGRAM: "only datagram sockets can be adopted here",
}


class AdoptError(Exception):
    """
    A refusal in one line: the request, why it fails, and which descriptors were passed.

    Before the reactor runs it is also a C{SystemExit}: uncaught, it ends the program with the line
    on stderr and exit status 1. A traceback would add no information. Once the reactor runs, it is
    an ordinary exception. A function raises it, or a Deferred fails with it.
    """

    def __init__(self, line: str) -> None:
        """@param line: the refusal. It stays one line even if the names in it hold line breaks."""
        super().__init__(escaped(line))


class _AdoptExit(AdoptError, SystemExit):
    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.code = refusalLine(line)


def refusal(line: str) -> AdoptError:
    """Return an error of this line, to raise: a C{SystemExit} too, unless the reactor runs."""
    # Looked up, because an import would install a reactor.
    reactor = sys.modules.get("twisted.internet.reactor")
    return AdoptError(line) if getattr(reactor, "running", False) else _AdoptExit(line)


class Descriptor(NamedTuple):
    """
    A file descriptor that was passed to this process.

    @ivar number: the descriptor itself.
    @ivar name: its C{FileDescriptorName=} or C{FDNAME=}, or C{unknown}.
    @ivar family: the address family of a socket; C{None} for anything else.
    @ivar kind: the type of a socket, such as C{SOCK_STREAM}; C{None} for anything else.
    @ivar listens: whether it is a socket that accepts connections.
    @ivar nature: its description for people: C{AF_INET 127.0.0.1:17}, C{is a FIFO}.
    """

    number: int
    name: str
    family: int | None
    kind: int | None
    listens: bool
    nature: str

    @classmethod
    def examine(cls, number: int, name: str) -> Descriptor:
        """Return an open descriptor as the kernel describes it. Its unit may say otherwise."""
        mode = os.fstat(number).st_mode
        if not stat.S_ISSOCK(mode):
            nature = _FILES.get(stat.S_IFMT(mode), "is a file")
            return cls(number, name, None, None, False, nature)
        with socket.socket(fileno=os.dup(number)) as found:
            family, kind, address = found.family, found.type, found.getsockname()
            listens = bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            isConnected = False
            with suppress(OSError):
                found.getpeername()
                isConnected = True
        faults = {
            " is a datagram socket": kind == socket.SOCK_DGRAM,
            " is not a stream socket": kind != socket.SOCK_STREAM,
            " is a connection": isConnected,
            " is not listening": not listens,
            " is of a family that Twisted does not serve": family not in _FAMILIES,
        }
        fault = next((fault for fault, isSo in faults.items() if isSo), "")
        shown = _FAMILIES.get(family, "{!r}").format(address)
        nature = f"{getattr(family, 'name', family)} {shown}{fault}"
        return cls(number, name, family, kind, listens, nature)

    def serves(self, kind: int) -> bool:
        """Whether it is a socket of that kind on which Twisted can serve clients."""
        isOpen = self.listens or kind == socket.SOCK_DGRAM
        return self.kind == kind and isOpen and self.family in _FAMILIES

    @property
    def isStray(self) -> bool:
        """Whether a C{.socket} unit can pass it, but no port of Twisted can use it."""
        isUnserved = self.listens and not self.serves(socket.SOCK_STREAM)
        return isUnserved or self.nature in ("is a FIFO", "is a special file")

    def __str__(self) -> str:
        return f"{self.number} {self.name!r} {self.nature}"


class Inherited:
    """
    The descriptors passed to this process. Each has one user at a time, until it is released.

    @ivar descriptors: all of them, in the order in which they were passed.
    @ivar isNothing: whether the environment names no passed descriptor, for this process or others.
    """

    def __init__(
        self,
        environ: MutableMapping[str, str],
        initial: Mapping[str, str],
        listenFds: Callable[[], Mapping[int, str]],
    ) -> None:
        """
        Read the variables of sd_listen_fds(3), and remove them so that no child process sees them.

        @param environ: the environment that C{listenFds} reads and children inherit.
        @param initial: the environment when the process began. The import of
            C{twisted.internet.endpoints} removes C{LISTEN_PID} and C{LISTEN_FDS} from C{environ}.
        @param listenFds: C{systemd.daemon.listen_fds_with_names}, which also sets close-on-exec.
        """
        passed = {**initial, **environ}
        variables = {key: passed[key] for key in _VARIABLES if key in passed}
        environ.update(variables)
        names: Mapping[int, str] = {}
        self._trouble = _findTrouble(variables)
        try:
            names = listenFds()
        except (OSError, SystemError):  # SystemError: a name that is not UTF-8
            self._trouble = f"count, names and open descriptors do not agree: {_show(variables)}"
        finally:
            for key in variables:
                del environ[key]
        self.isNothing = not names and self._trouble == _NOTHING
        self.descriptors = tuple(Descriptor.examine(*item) for item in names.items())
        self._given: set[Descriptor] = set()

    @property
    def free(self) -> tuple[Descriptor, ...]:
        """The descriptors that are not given out."""
        return tuple(each for each in self.descriptors if each not in self._given)

    def claim(
        self, name: str | None = None, kind: int = socket.SOCK_STREAM
    ) -> tuple[Descriptor, ...]:
        """
        Give out sockets that clients can reach, each to one user. If a socket had two users, each
        would get some of its clients by chance.

        @param name: their name; C{None} for all that are free.
        @param kind: C{SOCK_STREAM} for listening sockets, or C{SOCK_DGRAM}.
        @return: one or more sockets. Other descriptors of that name stay free.
        @raise AdoptError: if no socket fits; or, without a name, if Twisted cannot use one of the
            free descriptors, such as a FIFO. With such a descriptor, claim sockets by name.
        """
        named = [each for each in self.descriptors if name in (None, each.name)]
        fitting = [each for each in named if each.serves(kind)]
        free = tuple(each for each in fitting if each not in self._given)
        stray = name is None and any(each.isStray for each in self.free)
        passed = "; passed: " + ", ".join(map(str, self.descriptors))
        if not self.descriptors:
            reason, passed = self._trouble, ""
        elif not named:
            reason = "no passed descriptor has that name; its .socket must listen first"
        elif not fitting or stray:
            reason = _WANTED[socket.SocketKind(kind)]
        elif not free:
            reason = "given out already"
        else:
            self._given.update(free)
            return free
        raise refusal(f"{_ask(name)}: {reason}{passed}")

    def take(self, name: str) -> tuple[Descriptor, ...]:
        """
        Give out all free descriptors of a name: connections, memfds, sockets of all kinds.

        @return: the descriptors; empty if no free one has that name.
        """
        found = tuple(each for each in self.free if each.name == name)
        self._given.update(found)
        return found

    def release(self, descriptors: Iterable[Descriptor]) -> None:
        """Take descriptors back, so that others can use them. They must still be open."""
        self._given.difference_update(descriptors)

    def reclaim(self, descriptors: Collection[Descriptor]) -> None:
        """
        Give out again descriptors that were released.

        @raise AdoptError: if one of them has another user now.
        """
        for each in descriptors:
            if each in self._given:
                raise refusal(f"{_ask(each.name)}: given out already; passed: {each}")
        self._given.update(descriptors)


def _findTrouble(variables: Mapping[str, str]) -> str:
    """Return the likely reason if no descriptor was passed."""
    pid, ours = variables.get("LISTEN_PID"), str(os.getpid())
    if variables.get("LISTEN_FDS", "0") == "0" or pid == ours:
        return _NOTHING
    if pid is None:
        return f"{_show(variables)} without LISTEN_PID, which names the process"
    return f"{_show(variables)} is for another process, this is {ours}"


def _ask(name: str | None) -> str:
    """Return a claim, written as an endpoint description."""
    return "adopted" if name is None else f"adopted:name={name}"


def _show(variables: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value!r}" for key, value in variables.items())


@cache
def inherited() -> Inherited:
    """
    Return the descriptors passed to this process. The first call reads them. It must come before
    any fork, such as twistd's: a child has the descriptors, but C{LISTEN_PID} names its parent.

    @raise AdoptError: if descriptors were passed, and systemd-python is missing.
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            lines = os.fsdecode(file.read()).split("\0")
    except OSError:
        lines = []
    initial = dict(line.split("=", 1) for line in lines if "=" in line)
    return Inherited(os.environ, initial, _listenFds)


def _listenFds() -> Mapping[int, str]:
    if "LISTEN_FDS" not in os.environ:
        return {}
    try:
        from systemd.daemon import listen_fds_with_names
    except ImportError as why:
        raise refusal(
            f"adopted: systemd-python reads passed descriptors, and is missing "
            f"(Debian: python3-systemd): {why}"
        ) from None
    names: Mapping[int, str] = listen_fds_with_names()
    return names


def logUnused(passed: Inherited, asked: Collection[str], used: Collection[Descriptor] = ()) -> None:
    """
    Log each passed socket that nothing listens on. Its clients would wait for ever.

    @param asked: the addresses where the program listens or tried to, for the record.
    @param used: sockets in use that were not claimed.
    """
    for each in passed.free:
        isSocket = each.listens or each.kind == socket.SOCK_DGRAM
        if isSocket and each not in used:
            _log.warn(
                "the program does not use the passed socket {socket}; it asked for: {asked}",
                socket=str(each),
                asked=", ".join(asked) or "nothing",
                message_id="486623b19bbe4920afd6e05835d12910",
            )
