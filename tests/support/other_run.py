"""As in a container: kopiatomic in a mount namespace with a /run of its own, on the same host and in the same boot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.programs import Kopiatomic, command


def recover_elsewhere(kopiatomic: Kopiatomic, *args: str | Path) -> tuple[int, Any]:
    """``recover --json`` there: exit code and document."""
    script = 'mount -t tmpfs -o mode=755 none "$(readlink -f /run)" && exec "$@"'
    inside = ["unshare", "-m", "--propagation", "slave", "sh", "-c", script, "-"]
    argv = [*inside, *kopiatomic.argv("recover", "--json", *args)]
    ended = command(*argv, env=kopiatomic.environment, check=False)
    assert "Traceback" not in ended.stderr, ended
    return ended.returncode, json.loads(ended.stdout)
