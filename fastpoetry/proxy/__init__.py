"""Fetches poems from other servers, caches them, and shares them among readers."""
