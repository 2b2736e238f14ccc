"""What ``kopiatomic plan`` does in addition to planning: the facts, and what changed since the last run."""

from __future__ import annotations

from kopiatomic import errors
from kopiatomic.commands.failures import ended
from kopiatomic.config.options import Options
from kopiatomic.errors import KopiatomicError
from kopiatomic.model import changes, facts
from kopiatomic.model.report import Report
from kopiatomic.output.console import Console
from kopiatomic.planning.gather import gather
from kopiatomic.state.records import Records


def print_facts(options: Options, console: Console) -> int:
    """Print what a plan would be made from; return the exit code."""

    def run() -> int:
        console.verbatim(facts.dump(gather(options.request(options.mount_root, ""))))
        return errors.SAVED

    return ended(run, console)


def compare(state_dir: str, report: Report, console: Console) -> None:
    """Determine how a plan's selection differs from that of the last run in the same series."""
    assert report.plan is not None
    try:
        last = Records(state_dir).last_selection(report.series, report.run_id)
    except KopiatomicError as error:
        if error.kind == "not-root":
            error.hint = f"sudo {console.command_line}"
        console.error(error)
        return
    report.changes = changes.between(last, report.plan)
