"""Support for any Twisted program under systemd. This package does not know poetry."""
