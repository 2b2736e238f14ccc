"""The command line: parsers and help, one module per command."""
