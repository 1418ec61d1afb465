"""
Random lives: the real server with random events, which must keep the promises in SECURITY.md.

A life is a sequence of events that Hypothesis chooses. L{lives.kernel} moves the time and makes
system calls fail. L{lives.reader} is a client, L{lives.process} is one process of the server, and
L{lives.journal} takes its records. L{lives.world} joins them, and L{lives.machine} defines the
events and the promises.
"""
