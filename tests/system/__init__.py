"""
fastpoetry on booted systems: Debian 12 and 13 in containers, each with its own systemd and Twisted.

What can be tested without systemd is not tested here.
"""
