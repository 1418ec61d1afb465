"""
The file descriptors that systemd passes to this process: sockets of C{.socket} units, and what a
process before this one has left in the store.

Who wants one is given it; what is done with it is not known here.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import cache
from typing import NamedTuple

from fastpoetry.systemd.stderr import oneLine, refusalLine

__all__ = ["AdoptError", "Descriptor", "Inherited", "inherited", "refusal"]

_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
_NOTHING = (
    "no descriptor was passed: a .socket unit or systemd-socket-activate must pass one; "
    "if the address of the .socket was changed, restart that; else=ENDPOINT does without"
)

# The families that Twisted serves, and how an address of each is shown.
_FAMILIES = {
    socket.AF_UNIX: "{!r}",
    socket.AF_INET: "{0[0]}:{0[1]}",
    socket.AF_INET6: "[{0[0]}]:{0[1]}",
}

_FILES: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "is a FIFO"),
    (stat.S_ISCHR, "is a special file"),
    (stat.S_ISBLK, "is a special file"),
    (stat.S_ISDIR, "is a folder"),
)

_WANTED = {
    socket.SOCK_STREAM: "only listening stream sockets can be adopted",
    socket.SOCK_DGRAM: "only datagram sockets can be adopted so",
}


class AdoptError(Exception):
    """
    A refusal in one line: what was wanted, why it cannot be, and which descriptors were passed.

    Before the reactor runs it is a C{SystemExit} besides. Where nobody catches it, the program ends
    with the line on stderr and exit status 1; a traceback would tell nobody more. Once the reactor
    runs, it is an error like any other, in a Deferred or wherever it was raised.
    """

    def __init__(self, line: str) -> None:
        """@param line: the refusal. It stays one line, whatever the names in it hold."""
        super().__init__(oneLine(line))


class _AdoptExit(AdoptError, SystemExit):
    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.code = refusalLine(line)


def refusal(line: str) -> AdoptError:
    """
    @param line: what is refused, and why.
    @return: the error to raise now; whether the reactor runs makes a difference.
    """
    # Looked up, not imported: that would install one.
    reactor = sys.modules.get("twisted.internet.reactor")
    return AdoptError(line) if getattr(reactor, "running", False) else _AdoptExit(line)


class Descriptor(NamedTuple):
    """
    A file descriptor as it was passed to this process.

    @ivar number: the descriptor itself.
    @ivar name: its C{FileDescriptorName=} or C{FDNAME=}, or C{unknown}.
    @ivar family: the address family of a socket; C{None} for anything else.
    @ivar kind: the type of a socket, such as C{SOCK_STREAM}; C{None} for anything else.
    @ivar listens: whether it is a socket that accepts connections.
    @ivar nature: what it is, for a person: C{AF_INET 127.0.0.1:17}, C{is a FIFO}.
    """

    number: int
    name: str
    family: int | None
    kind: int | None
    listens: bool
    nature: str

    @classmethod
    def examine(cls, number: int, name: str) -> Descriptor:
        """
        @param number: an open descriptor.
        @param name: the name that it was passed under.
        @return: what the kernel says that it is, whatever anybody declared.
        """
        mode = os.fstat(number).st_mode
        if not stat.S_ISSOCK(mode):
            natures = [nature for isSo, nature in _FILES if isSo(mode)]
            return cls(number, name, None, None, False, (natures or ["is a file"])[0])
        with socket.socket(fileno=os.dup(number)) as found:
            family, kind, address = found.family, found.type, found.getsockname()
            listens = bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            isConnected = _isConnected(found)
        if kind == socket.SOCK_DGRAM:
            fault = " is a datagram socket"
        elif kind != socket.SOCK_STREAM:
            fault = " is not a stream socket"
        elif isConnected:
            fault = " is a connection"
        elif not listens:
            fault = " is not listening"
        elif family not in _FAMILIES:
            fault = " is of a family that Twisted does not serve"
        else:
            fault = ""
        shown = _FAMILIES.get(family, "{!r}").format(address)
        nature = f"{getattr(family, 'name', family)} {shown}{fault}"
        return cls(number, name, family, kind, listens, nature)

    def serves(self, kind: int) -> bool:
        """
        @param kind: C{SOCK_STREAM} or C{SOCK_DGRAM}.
        @return: whether it is a socket of that kind to which clients come, and Twisted knows it.
        """
        isOpen = self.listens or kind == socket.SOCK_DGRAM
        return self.kind == kind and isOpen and self.family in _FAMILIES

    @property
    def isStray(self) -> bool:
        """Whether it is what a C{.socket} unit can pass and nothing of Twisted's can use."""
        isUnserved = self.listens and not self.serves(socket.SOCK_STREAM)
        return isUnserved or self.nature in ("is a FIFO", "is a special file")

    def __str__(self) -> str:
        return f"{self.number} {self.name!r} {self.nature}"


def _isConnected(found: socket.socket) -> bool:
    try:
        found.getpeername()
    except OSError:
        return False
    return True


class Inherited:
    """
    The descriptors passed to this process, each of which is given out once, until it is released.

    @ivar descriptors: all of them, in the order in which they were passed.
    @ivar isNothing: whether nobody has passed anything, not even to another process.
    """

    def __init__(
        self,
        environ: MutableMapping[str, str],
        initial: Mapping[str, str],
        listenFds: Callable[[], Mapping[int, str]],
    ) -> None:
        """
        Read what sd_listen_fds(3) describes, and remove it so that no child process sees it.

        @param environ: the environment that C{listenFds} reads and children inherit.
        @param initial: the environment when the process began: C{twisted.internet.endpoints} takes
            C{LISTEN_PID} and C{LISTEN_FDS} out of the other one as soon as it is imported.
        @param listenFds: C{systemd.daemon.listen_fds_with_names}, which also sets close-on-exec.
        """
        passed = {**initial, **environ}
        told = {key: passed[key] for key in _VARIABLES if key in passed}
        self.isNothing = told.get("LISTEN_FDS", "0") == "0"
        environ.update(told)
        try:
            names = listenFds()
            self._trouble = self._findTrouble(told)
        except (OSError, SystemError):  # SystemError: a name that is not UTF-8
            names = {}
            self._trouble = f"count, names and open descriptors do not agree: {_show(told)}"
        finally:
            for key in told:
                del environ[key]
        self.isNothing = self.isNothing and not names
        self.descriptors = tuple(Descriptor.examine(*item) for item in names.items())
        self._given: set[Descriptor] = set()

    def _findTrouble(self, told: Mapping[str, str]) -> str:
        """@return: why nothing may have been passed."""
        ours = str(os.getpid())
        if self.isNothing:
            return _NOTHING
        if "LISTEN_PID" not in told:
            return f"{_show(told)} without LISTEN_PID, which says for whom that is"
        if told["LISTEN_PID"] != ours:
            return f"{_show(told)} is for another process, this is {ours}"
        return _NOTHING

    @property
    def free(self) -> tuple[Descriptor, ...]:
        """Those that are not given out."""
        return tuple(each for each in self.descriptors if each not in self._given)

    def claim(
        self, name: str | None = None, kind: int = socket.SOCK_STREAM
    ) -> tuple[Descriptor, ...]:
        """
        Give out sockets to which clients come: which of two that serve one does is mere chance.

        @param name: whose; C{None} for all that are left.
        @param kind: C{SOCK_STREAM}, those that listen, or C{SOCK_DGRAM}.
        @return: one or more. Others of that name stay for those that ask for them.
        @raise AdoptError: there is none, or, where no name was asked for, something is among them
            that nobody can adopt, like a FIFO: a program that is passed such things asks by name.
        """
        named = [each for each in self.descriptors if name in (None, each.name)]
        fitting = [each for each in named if each.serves(kind)]
        free = tuple(each for each in fitting if each not in self._given)
        stray = name is None and any(each.isStray for each in self.free)
        passed = "; passed: " + ", ".join(map(str, self.descriptors))
        if not self.descriptors:
            reason, passed = self._trouble, ""
        elif not named:
            reason = "no passed descriptor has that name"
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
        Give out whatever has a name: connections, memfds, sockets of all kinds.

        @param name: whose.
        @return: those that have not been given out; none, if there are none.
        """
        found = tuple(each for each in self.free if each.name == name)
        self._given.update(found)
        return found

    def release(self, descriptors: Iterable[Descriptor]) -> None:
        """
        Take back what was given out, so that somebody else can have it.

        @param descriptors: which, still open.
        """
        self._given.difference_update(descriptors)

    def reclaim(self, descriptors: Iterable[Descriptor]) -> None:
        """
        Give out again what was released.

        @param descriptors: which.
        @raise AdoptError: somebody else has one of them by now.
        """
        for each in descriptors:
            if each in self._given:
                raise refusal(f"{_ask(each.name)}: given out already; passed: {each}")
        self._given.update(descriptors)


def _ask(name: str | None) -> str:
    """@return: a claim as an endpoint description."""
    return "adopted" if name is None else f"adopted:name={name}"


def _show(variables: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value!r}" for key, value in variables.items())


@cache
def inherited() -> Inherited:
    """
    @return: what was passed to this process. The first call reads it, and comes before any fork
        such as twistd's: descriptors survive that, but C{LISTEN_PID} goes on naming the parent.
    @raise AdoptError: something was passed, and systemd-python is missing.
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
            f"adopted: systemd-python is missing (Debian: python3-systemd), which reads passed "
            f"descriptors: {why}"
        ) from None
    names: Mapping[int, str] = listen_fds_with_names()
    return names
