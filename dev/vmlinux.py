"""Unpacks a compressed Linux kernel image: vmlinux.py VMLINUZ VMLINUX.

The x86 boot protocol (Documentation/arch/x86/boot.rst in Linux) gives the place of the packed kernel in it.
"""

import struct
import subprocess
import sys
from pathlib import Path

SETUP_SECTORS = 0x1F1
PAYLOAD_OFFSET_AND_LENGTH = 0x248
UNPACKERS = {b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}


def unpack(image: bytes) -> bytes:
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET_AND_LENGTH)
    start = (image[SETUP_SECTORS] + 1) * 512 + offset
    # The last four bytes are the unpacked length.
    payload = image[start : start + length - 4]
    for magic, program in UNPACKERS.items():
        if payload.startswith(magic):
            return subprocess.run([program, "-dc"], input=payload, stdout=subprocess.PIPE, check=True).stdout
    sys.exit(f"error: this kernel is packed in a way not known here (it begins with {payload[:6].hex()})")


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(unpack(Path(sys.argv[1]).read_bytes()))
