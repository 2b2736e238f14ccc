"""The file by which kopia leaves out the directory that it is in: its command line has no exclusions."""

NAME = ".kopiaignore"

EVERYTHING = "*\n"
"""A rule for all that is beside the file."""
