"""Poems from another server: fetched, kept, shared."""
