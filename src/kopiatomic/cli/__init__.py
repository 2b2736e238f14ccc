"""The command line: parsers and help, one module for each command."""
