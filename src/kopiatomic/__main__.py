"""``python -m kopiatomic``."""

from kopiatomic.cli.entry import main

main()
