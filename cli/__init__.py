"""The command line: flags, help, how a command line is resolved to a run, and one module for each mode.

The module of a mode has SUMMARY, a line of help; FLAGS, its own flags; options(), the options of the classes that one of its
flags chooses (the samplers, for example); and run(command).
"""
