"""kopia that ends in ways it should not: the real one behind a script that misbehaves when it is to make its snapshot."""

from __future__ import annotations

import random
import shlex
import shutil
from collections.abc import Callable, Sequence

from tests.btrfs.faults import BtrfsGround
from tests.support.faults import LIMIT_S, Fault, Ground
from tests.support.programs import Completed

GARBAGE = (
    "echo 'no JSON at all'",
    'echo \'{"id":"\'',
    "echo '[]'",
    "echo 'null'",
    "echo '{}'",
    "head -c 100000 /dev/urandom",
    "head -c 20000000 /dev/zero",
    "printf '{'; head -c 5000000 /dev/zero | tr '\\0' '['",
    'echo \'{"id":"x","source":{"path":"/elsewhere"},"rootEntry":{"obj":"y","summ":{}}}\'',
)


def kopia_that(*lines: str) -> Callable[[Ground, random.Random], Completed]:
    """One of these shell lines stands for ``kopia snapshot create``; {real} is what kopia itself would do."""
    return lambda ground, drawn: with_kopia(ground, drawn.choice(lines))


def with_kopia(ground: Ground, line: str) -> Completed:
    assert isinstance(ground, BtrfsGround)
    assert ground.kopia is not None
    real = shlex.quote(str(shutil.which("kopia")))
    script = ground.folder / "kopia-stand-in"
    script.write_text(
        f'#!/bin/sh\ncase "$1 $2" in\n"snapshot create") {line.replace("{real}", real)} ;;\n*) exec {real} "$@" ;;\nesac\n'
    )
    script.chmod(0o755)
    environment = {**ground.kopia.environment, "KOPIATOMIC_KOPIA": str(script)}
    return ground.start("--mount-root", ground.root, *ground.names, env=environment).wait(LIMIT_S)


FAULTS: Sequence[Fault] = (
    Fault("kopia prints garbage", kopia_that(*GARBAGE), {1: "kopia"}),
    Fault("kopia prints garbage and fails", kopia_that(*(f"{line}; exit 1" for line in GARBAGE)), {1: "kopia failed"}),
    Fault(
        "kopia ends well without a word", kopia_that("exit 0"), {1: "kopia ended without an error and without a result"}
    ),
    Fault(
        "kopia ends well and tells of a snapshot that is not there",
        kopia_that(
            'echo \'{"id":"0123456789abcdef0123456789abcdef","source":{"host":"h","userName":"u","path":"\'"$3"\'"},'
            '"rootEntry":{"name":"x","type":"d","obj":"k0123456789abcdef0123456789abcdef","summ":{"files":4,"size":9}}}\''
        ),
        {1: "kopia told of the snapshot 0123456789abcdef0123456789abcdef, which is not in its repository"},
    ),
    Fault(
        "kopia counts in words",
        kopia_that(
            *(
                f'{{real}} "$@" | sed \'s/"{key}":[0-9]*/"{key}":{value}/\''
                for key in ("numFailed", "files", "size")
                for value in ('"three"', "-1", "1e3", "[]", "true", "99999999999999999999")
            )
        ),
        {1: "kopia's output is not understood: its number"},
    ),
    Fault("kopia closes its output early", kopia_that('exec {real} "$@" >&-'), {1: "kopia"}),
    Fault("kopia's output is cut off", kopia_that('{real} "$@" | head -c 100'), {1: "kopia"}),
    Fault(
        "kopia is killed",
        kopia_that("kill -9 $$", 'timeout -s KILL 0.2 {real} "$@"; kill -9 $$'),
        {1: "kopia failed .killed"},
    ),
    Fault("kopia fails without a word", kopia_that("exit 1"), {1: "kopia failed .exit status 1"}),
)
