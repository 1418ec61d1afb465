"""A poetry server, and tools that run any Twisted service well under systemd."""

__version__ = "1.1.0"
