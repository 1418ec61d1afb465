"""Sends poems on sockets, limits the readers, and counts the connections."""
