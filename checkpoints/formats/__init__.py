"""Checkpoints on disk. A format is a module with recognises(path), read(path, config) and write(checkpoint, path, ema).
`write` returns what the format cannot hold, as text."""
