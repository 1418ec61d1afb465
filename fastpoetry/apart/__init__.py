"""Work that may hang, done in processes and threads that nothing else has to wait for."""
