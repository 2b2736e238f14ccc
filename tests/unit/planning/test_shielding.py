"""What must be frozen whole or hidden in place, so that nobody can move what lies above a place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.facts import Facts
from kopiatomic.model.plan import Layout, Plan
from tests.unit.support.plans import facts, plan, zfs

ANN = "user ann"


def in_place(known: Facts, *names: str, **more: bool) -> Plan:
    return plan(known, *names, layout=Layout.IN_PLACE, **more)


def homes(*made: tuple[str, str, str], **more: object) -> Facts:
    """/home is a dataset, in which /home/ann is ann's."""
    movers = {"/home/ann/docs": ANN, "/home/ann/vm": ANN, "/home/ann/disk": ANN}
    return facts(
        ("/home", "zfs", "tank/home"),
        *made,
        datasets=[zfs("tank/home"), zfs("tank/vm"), zfs("tank/inner")],
        directories=["/home/ann", "/home/ann/docs"],
        movers=movers,
        **more,  # type: ignore[arg-type]
    )


def shown(chosen: Plan) -> list[tuple[str, str]]:
    return [pair for taken in chosen.taken for pair in taken.shown]


def test_a_part_that_nobody_can_move_is_shown_alone() -> None:
    chosen = in_place(homes(), "/home/ann")
    assert shown(chosen) == [("/home/ann", "ann")]
    assert (chosen.hidden, chosen.relit, chosen.covered) == ((), (), ("/home/ann",))


def test_a_part_that_somebody_can_move_is_shown_in_its_whole_dataset() -> None:
    chosen = in_place(homes(("/home/bob/usb", "ext4", "/dev/sdc"), ("/home/bob/nfs", "nfs", "x:/y")), "/home/ann/docs")
    assert shown(chosen) == [("/home", ""), ("/home/ann/docs", "ann/docs")]
    assert chosen.sources == ("/home/ann/docs",)
    assert [t.whole for t in chosen.taken] == [ANN]
    assert chosen.uncovered == ()
    assert [u.point for u in chosen.relit] == ["/home/bob/usb"]
    assert [(u.point, u.live) for u in chosen.beside] == [("/home/bob/nfs", False), ("/home/bob/usb", True)]
    assert chosen.covered == ("/home",)


def test_a_mount_point_that_somebody_can_move_has_its_directory_hidden() -> None:
    known = homes(("/home/ann/vm", "zfs", "tank/vm"), ("/home/ann/usb", "ext4", "/dev/sdc"))
    chosen = in_place(known, "tank/vm")
    assert [(h.directory, h.who, h.place) for h in chosen.hidden] == [("/home/ann", ANN, "/home/ann/vm")]
    assert [u.point for u in chosen.relit] == ["/home/ann/usb"]
    assert chosen.sources == ("/home/ann/vm",)
    # What holds it is frozen as well: nobody can move anything there.
    assert in_place(known, "tank/home", "tank/vm").hidden == ()
    assert plan(known, "tank/vm").hidden == ()


def test_a_live_mount_between_is_hidden_where_a_place_in_it_can_be_moved() -> None:
    """Also one that would be in the backup: then it is not."""
    known = homes(("/home/ann/disk", "ext4", "/dev/sdc"), ("/home/ann/disk/inner", "zfs", "tank/inner"))
    chosen = in_place(known, "tank/inner")
    assert [h.directory for h in chosen.hidden] == ["/home/ann"]
    assert chosen.relit == ()
    chosen = in_place(known, "tank/home", "tank/inner")
    assert chosen.hidden == ()
    assert [(u.point, u.live) for u in chosen.uncovered] == [("/home/ann/disk", True)]
    known = replace(known, movers={**known.movers, "/home/ann/disk/inner": ANN})
    chosen = in_place(known, "tank/home", "tank/inner")
    assert [h.directory for h in chosen.hidden] == ["/home/ann/disk"]
    assert [(u.point, u.live) for u in chosen.uncovered] == [("/home/ann/disk", False)]


def test_what_was_not_looked_at_counts_as_movable() -> None:
    known = replace(homes(("/home/ann/vm", "zfs", "tank/vm")), movers={"/home": ""})
    (hidden,) = in_place(known, "tank/vm").hidden
    assert (hidden.directory, hidden.who) == ("/home", "somebody (it was not looked at)")


def test_nothing_can_stand_for_the_root_of_everything() -> None:
    known = replace(homes(), movers={"/home": "everybody"})
    with pytest.raises(KopiatomicError, match="everybody can change the directory /") as caught:
        in_place(known, "tank/home")
    assert caught.value.kind == "place-not-safe"
    assert plan(known, "tank/home").taken
