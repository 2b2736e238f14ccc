"""A program that hands all its work to a process outside of the view, as ``docker exec CONTAINER kopia`` does.

What runs there is the real program, with the same words and environment; it sees the live files.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLIENT = """#!{python} -I
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    server.sendall(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode() + b"\\n")
    status, out, err = json.loads(server.makefile("rb").readline())
os.write(1, out.encode("utf-8", "surrogateescape"))
os.write(2, err.encode("utf-8", "surrogateescape"))
sys.exit(status)
"""


@contextmanager
def handing_over(program: str, folder: Path) -> Iterator[Path]:
    """A script that has a program run outside; it works as long as the block."""
    address = str(folder / "socket")

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            words, environment, cwd = json.loads(self.rfile.readline())
            argv = [program, *words]
            ended = subprocess.run(argv, env=environment, cwd=cwd, capture_output=True, check=False)
            texts = [text.decode("utf-8", "surrogateescape") for text in (ended.stdout, ended.stderr)]
            self.wfile.write(json.dumps([ended.returncode, *texts]).encode() + b"\n")

    class Server(socketserver.ThreadingUnixStreamServer):
        # Their number is small, and a reset would look like a failure of the program.
        request_queue_size = socket.SOMAXCONN

    folder.mkdir()
    script = folder / os.path.basename(program)
    script.write_text(_CLIENT.format(python=sys.executable, address=address))
    script.chmod(0o755)
    with Server(address, Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield script
        finally:
            server.shutdown()
