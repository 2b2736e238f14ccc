"""``python -m kopiatomic``."""

from kopiatomic.cli import main

main()
