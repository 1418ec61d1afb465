"""
The server under faults, load and abuse: real processes and real sockets, on loopback only.

What needs a booted systemd is not here.
"""
