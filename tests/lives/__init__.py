"""
Random lives: the real server meets random events, and must keep what SECURITY.md promises.

A life is a sequence of events that Hypothesis chooses. L{lives.kernel} moves the time and lets
system calls fail, L{lives.reader} is a client, L{lives.process} is one process of the server,
L{lives.world} joins them, and L{lives.machine} names the events and the promises.
"""
