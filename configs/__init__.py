"""Experiments: default.py, and one short file each that says only what differs."""
