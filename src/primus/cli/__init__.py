"""Verbs of the command line, one file each, imported when used."""
