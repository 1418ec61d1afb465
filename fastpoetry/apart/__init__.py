"""Work that may hang, done in separate processes."""
