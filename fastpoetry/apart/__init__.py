"""Work that may stand still, done where nothing else waits for it."""
