"""
Tests on booted systems: Debian 12 and 13 in containers, each with its own systemd and Twisted.

Tests that do not need systemd are elsewhere.
"""
