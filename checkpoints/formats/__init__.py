"""Checkpoints on disk. A format is a module with recognises(path), read(path, config) and write(checkpoint, path, ema),
which says what the format does not hold."""
