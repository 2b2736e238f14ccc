"""A hook that runs in the frozen view, as a command of ``exec`` does."""

from __future__ import annotations

import json
import time

from kopiatomic.engines.engine import Job
from kopiatomic.errors import KopiatomicError, StartError
from kopiatomic.hooks.hook import Moment
from kopiatomic.hooks.run import HookError, Output, account_of, failed, too_late
from kopiatomic.model.engine import Command
from kopiatomic.model.report import HookRun
from kopiatomic.runs.hooks import Hooks, Prepared
from kopiatomic.runs.launcher import Checked, Start, StartOptions
from kopiatomic.runs.streams import FedPipes
from kopiatomic.runs.supervisor import Supervisor
from kopiatomic.state import lists
from kopiatomic.system import accounts, process, signals
from kopiatomic.system.spawn import User


def run(prepared: Prepared, hooks: Hooks, supervisor: Supervisor, job: Job, stop_timeout: float) -> HookRun:
    """Run a hook in the view, with a directory for temporary files that it alone has. Return what came of it.

    Raises KopiatomicError if what it saw was not the frozen view, or a process of the run has died; and Interrupted.
    """
    began = time.monotonic()
    error = None
    try:
        checked = _ran(prepared, hooks, supervisor, job, stop_timeout)
    except HookError as failure:
        error = failure
    else:
        if checked.problems:
            raise KopiatomicError(
                f"what {prepared.hook.shown} saw is not the frozen view: {'; '.join(checked.problems)}",
                kind="view-changed",
                hint="Find out who removed it, and run again.",
            )
    return HookRun(prepared.hook.moment.value, prepared.hook.place, time.monotonic() - began, error)


def _ran(prepared: Prepared, hooks: Hooks, supervisor: Supervisor, job: Job, stop_timeout: float) -> Checked:
    """Run it to its end, successfully. Raises HookError, KopiatomicError, Interrupted."""
    hook = prepared.hook
    account = account_of(hook)
    told = hooks.told(Moment.IN_VIEW, final=False)
    own = {} if account is None else accounts.variables(account)
    environment = hooks.environment({**own, **told.variables, **prepared.variables})
    output = Output(hook, hooks.say)
    streams = FedPipes(json.dumps(told.document).encode() + b"\n", lambda _, data: output.take(data))
    user = None if account is None else User.of(account)
    # Its user reads them; the engine gets its own.
    lists.write(job.run_id, job.plan, 0 if user is None else user.uid)
    # Another directory that the profile names for temporary files holds.
    temporary = "" if "TMPDIR" in prepared.variables else lists.mount_point(job.run_id)
    options = StartOptions(user, anywhere=False, directory=hook.directory, temporary=temporary)
    start = Start(Command(hook.argv, {}), environment, options)
    try:
        checked = supervisor.run(start, streams, stop_timeout, limit=hook.timeout)
    except process.TimeLimitError:
        raise too_late(hook) from None
    except StartError as error:
        raise HookError(f"{hook.shown}: {error.message}", kind="hook-not-started", hint=error.hint) from None
    finally:
        output.end()
    reason = signals.reason()
    if checked.end.stopped and reason is not None:
        raise reason
    if checked.end.status != 0:
        raise failed(hook, checked.end.status, output.last)
    return checked
