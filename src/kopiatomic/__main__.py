"""Entry point of ``python -m kopiatomic``."""

from kopiatomic.cli.entry import main

main()
