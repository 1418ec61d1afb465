"""
Tests of the server under faults, load and abuse: real processes and real sockets, on loopback only.

Tests that need a booted systemd are elsewhere.
"""
