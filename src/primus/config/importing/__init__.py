"""Experiment files of other systems -> ours: ``primus-cli config import``.

``inputs`` (with ``arguments`` for shell scripts) reads a file into settings, each with its place; ``table`` says, one
row a key, what becomes of a setting, in the words of ``rules`` and the conversions of ``values``; ``convert`` puts the
results together and has our own loader judge them; ``write`` makes the file. Nothing is dropped silently: a setting is
carried, or listed with the reason why not.
"""
