"""Whether whoever ends a run ends its ``before_freeze`` too, whenever that is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kopiatomic.errors import Interrupted
from kopiatomic.hooks.hook import Hook, Moment
from kopiatomic.model.report import Report
from kopiatomic.runs import tied
from kopiatomic.runs.guardian import Guardian
from kopiatomic.runs.hooks import Hooks, Prepared
from kopiatomic.runs.owed import Debt
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state.records import Records
from kopiatomic.system import signals

RUN = "20261129T101112Z-00000001"
HOOK_S = 60


def test_a_signal_right_at_the_start_of_before_freeze_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow start of the guardian is injected: its handlers are not there yet when the main process is asked to end."""
    before = tied.ended_with

    @contextmanager
    def slow(main: int) -> Iterator[None]:
        time.sleep(0.5)
        with before(main):
            yield

    monkeypatch.setattr(tied, "ended_with", slow)
    report = Report(RUN, "/kopia/home")
    hook = Prepared(Hook(Moment.BEFORE_FREEZE, ("sleep", str(HOOK_S))), {})
    hooks = Hooks([hook], dict(os.environ), report, secrets=Secrets((), {}), profile="home", say=lambda _: None)
    debt = Debt(Records(str(tmp_path / "state")), RUN, "home", "/etc/kopiatomic/home.toml")
    began = time.monotonic()
    with signals.handled(), Guardian(hooks, report, debt) as guardian:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            guardian.begin()
    assert time.monotonic() - began < HOOK_S / 2
