"""The verbs of dev/vm."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from machines.command import Command
from machines.machine import Images, Machine, MachineError, say
from machines.qemu import Qemu
from machines.uml import Uml

EXIT_MACHINE_ENDED = 125
EMULATORS: dict[str, type[Machine]] = {"uml": Uml, "qemu": Qemu}


def execute(machine: Machine, options: argparse.Namespace) -> int:
    with machine.free_port() as connection:
        command = Command(machine, connection, options.cut_at.encode() if options.cut_at else None)
        environment = dict(pair.split("=", 1) for pair in options.env)
        stdin = None if sys.stdin is None or sys.stdin.isatty() or not options.stdin else sys.stdin.buffer
        command.begin(options.command, options.folder, environment, stdin=stdin is not None)
        return command.follow(options.timeout, stdin)


@contextlib.contextmanager
def fresh_machine(options: argparse.Namespace) -> Iterator[Machine]:
    """A machine of its own, gone at the end."""
    machine = EMULATORS[options.emulator](Path(tempfile.mkdtemp(prefix="kopiatomic-vm.")))
    try:
        process = machine.start(options.images, options.disk, options.exchange, survive=False)
        try:
            machine.wait_until_ready(process)
            yield machine
        except MachineError as error:
            if machine.console_text() and "console" not in str(error):
                raise MachineError(f"{error}\n{machine.evidence()}") from error
            raise
        finally:
            machine.kill()
            process.wait()
    finally:
        machine.remove()


def run(options: argparse.Namespace) -> int:
    with fresh_machine(options) as machine:
        return execute(machine, options)


def up(options: argparse.Namespace) -> int:
    machine = EMULATORS[options.emulator](options.state)
    if machine.alive():
        say("The machine is up already (dev/vm down ends it).")
        return 0
    shutil.rmtree(machine.state, ignore_errors=True)
    machine.state.mkdir(mode=0o700)
    process = machine.start(options.images, options.disk, options.exchange, survive=True)
    try:
        machine.wait_until_ready(process)
    except BaseException:
        process.kill()
        raise
    say(f"The machine is up. Console: {machine.console}; exchange folder: {machine.exchange} (in the guest /exchange).")
    return 0


def exec_(options: argparse.Namespace) -> int:
    machine = EMULATORS[options.emulator](options.state)
    if not machine.alive():
        raise MachineError("no machine is up\n  -> start one: dev/vm up")
    return execute(machine, options)


def down(options: argparse.Namespace) -> int:
    machine = EMULATORS[options.emulator](options.state)
    machine.kill()
    machine.remove()
    return 0


def stop_in_order(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="dev/vm", description="Boot a test machine and run commands in it.")
    top.add_argument("--emulator", choices=EMULATORS, required=True, help=argparse.SUPPRESS)
    for name in ("boot", "root", "kopia"):
        top.add_argument(f"--image-{name}", type=Path, required=True, help=argparse.SUPPRESS)
    top.add_argument("--state", type=Path, required=True, help=argparse.SUPPRESS)
    verbs = top.add_subparsers(dest="verb", required=True)
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument(
        "--disk",
        type=Path,
        action="append",
        default=[],
        help="a raw disk image: /dev/ubdc, then ubdd, ... (in qemu: /dev/vdc, then vdd, ...)",
    )
    machine.add_argument(
        "--exchange",
        type=lambda path: Path(path).resolve(),
        metavar="DIR",
        help="folder that the guest sees as /exchange",
    )
    command = argparse.ArgumentParser(add_help=False)
    command.add_argument("--timeout", type=float, metavar="S", help="seconds before the command is ended")
    command.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set this for the command")
    command.add_argument("--folder", default="/source", help="its working directory (default: %(default)s)")
    command.add_argument("--cut-at", metavar="TEXT", help="cut the machine's power when the command writes this")
    command.add_argument("--stdin", action="store_true", help="pass standard input on")
    command.add_argument("command", nargs="+", metavar="COMMAND")
    verbs.add_parser("run", parents=[machine, command], help="boot, run a command, end the machine").set_defaults(
        call=run
    )
    verbs.add_parser("up", parents=[machine], help="boot a machine that stays").set_defaults(call=up)
    verbs.add_parser("exec", parents=[command], help="run a command in the machine that is up").set_defaults(call=exec_)
    verbs.add_parser("down", help="end the machine that is up").set_defaults(call=down)
    return top


def main() -> int:
    options = parser().parse_args()
    options.images = Images(options.image_boot, options.image_root, options.image_kopia)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop_in_order)
    try:
        return int(options.call(options))
    except MachineError as error:
        say(f"error: {error}")
        return EXIT_MACHINE_ENDED


if __name__ == "__main__":
    sys.exit(main())
