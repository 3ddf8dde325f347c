"""Experiments: default.py, and one short file for each other experiment, with only what differs."""
