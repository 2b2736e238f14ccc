"""Makes the metadata record of a tree for kopia, and nothing else: record_alone.py TREE FOLDER; prints its memory."""

import os
import sys

from kopiatomic.engines.kopia.engine import KopiaRepository
from kopiatomic.trees.record import Recorder
from kopiatomic.trees.shards import Writer


def main() -> None:
    tree, folder = sys.argv[1:]
    writer = Writer(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    recorder = Recorder(writer, KopiaRepository.losses)
    if tree != "-":
        recorder.add(os.open(tree, os.O_RDONLY | os.O_DIRECTORY), tree)
    writer.end({"datasets": []})
    # Not from getrusage(2), which counts what the process was before it became this program.
    with open("/proc/self/status") as status:
        print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) << 10)


main()
