"""A poetry server, and what any Twisted service needs to live well under systemd."""

__version__ = "1.1.0"
