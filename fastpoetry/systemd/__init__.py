"""What any Twisted program needs to live well under systemd; knows nothing of poetry."""
