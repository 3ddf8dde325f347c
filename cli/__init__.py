"""The command line: flags, help, which run a command line means, and one module for each mode.

A module of a mode has SUMMARY, a line of help; FLAGS, the flags of its own; options(), the options of the classes that one
of its flags chooses; and run(command).
"""
