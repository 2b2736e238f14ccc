"""Several writers held still at one time: held in order, released in reverse order, and all released if one cannot be held."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from kopiatomic.errors import KopiatomicError, unforeseen
from kopiatomic.hooks.holder import Held, Holder
from kopiatomic.model.leftovers import Intent
from kopiatomic.system import signals


class Together:
    """Holds all of some writers. A context manager: at its end nothing is held, and nothing that was started for it is left.

    A writer that is not required and cannot be held is left out, and ``left_out`` says why.
    """

    def __init__(self, holders: Sequence[Holder]) -> None:
        self._holders = list(holders)
        self._required = {holder.label for holder in holders if holder.wanted.required}
        self.left_out: list[KopiatomicError] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def any(self) -> bool:
        """Whether there is any writer to hold."""
        return bool(self._holders)

    def require_held(self, held: Sequence[Held]) -> None:
        """Refuse what was made if a required writer was not held throughout. Raises KopiatomicError."""
        for one in held:
            if one.proven:
                continue
            error = KopiatomicError(
                f"{one.label} was not held still until the last snapshot existed: {one.why}",
                kind="hold-lost",
                hint="Nothing was saved. If its limit was over, a higher one gives the snapshots more time; else run again.",
            )
            if one.label in self._required:
                raise error
            self.left_out.append(error)

    def intents(self) -> list[Intent]:
        """Return what must be recorded before :meth:`hold`. In the main process. Raises KopiatomicError."""
        found: list[Intent] = []
        self._each(lambda holder: found.extend(holder.intents()))
        return found

    def prepare(self) -> None:
        """Do all that takes time and holds nothing. Raises KopiatomicError when nothing is held."""
        self._each(lambda holder: holder.prepare(time.monotonic() + holder.wanted.timeout))

    def hold(self) -> None:
        """Hold all, then have them write out what the snapshots would lack. Raises KopiatomicError when nothing is held."""
        self._each(lambda holder: holder.hold(time.monotonic() + holder.wanted.timeout))
        self._each(lambda holder: holder.settle())

    def release(self) -> list[Held]:
        """Release all, the last one first; return how each was held, in the order of holding."""
        return [_released(holder) for holder in reversed(self._holders)][::-1]

    def close(self) -> None:
        """Release what is still held, and end what was started."""
        with signals.deferred():
            while self._holders:
                self._holders.pop().close()

    def _each(self, act: Callable[[Holder], None]) -> None:
        for holder in list(self._holders):
            try:
                act(holder)
            except KopiatomicError as error:
                if holder.wanted.required:
                    self._give_up(holder)
                    raise
                with signals.deferred():
                    holder.close()
                self._holders.remove(holder)
                self.left_out.append(error)
            except BaseException:
                self._give_up(holder)
                raise

    def _give_up(self, failed: Holder) -> None:
        """Close all, the one that failed last: it may take its time to end, and the others are held meanwhile."""
        self._holders.remove(failed)
        self._holders.insert(0, failed)
        self.close()


def _released(holder: Holder) -> Held:
    try:
        return holder.release()
    except Exception as error:
        # The others must be released whatever went wrong here.
        holder.close()
        return Held(holder.label, 0, False, unforeseen(error).message)
