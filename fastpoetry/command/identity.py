"""
The user and group that the program will run as.

Imports no reactor: files are checked before Twisted's sockets are imported.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.python.usage import Options

from fastpoetry.command.options import refuse


@contextmanager
def asServer(options: Options) -> Iterator[None]:
    """
    Take the user and group of twistd's --uid and --gid for a while, to check files as the server.

    @param options: of a twistd command.
    @raise SystemExit: if there is no such user; twistd would not start either.
    """
    twistd: Any = getattr(options, "parent", None) or {}
    uid, gid = twistd.get("uid"), twistd.get("gid")
    if os.geteuid() != 0 or (uid is None and gid is None):
        yield
        return
    groups, egid = os.getgroups(), os.getegid()
    try:
        if uid is None:
            os.setegid(gid)
        else:
            try:
                user = pwd.getpwuid(uid)
            except KeyError:
                refuse(f"--uid {uid}: no user has that number")
            group = user.pw_gid if gid is None else gid
            os.initgroups(user.pw_name, group)
            os.setegid(group)
            os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(egid)
        os.setgroups(groups)
