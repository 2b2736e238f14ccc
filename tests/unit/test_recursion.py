"""No function of the program calls itself: how deep a user's tree is must not decide whether root's backup runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import kopiatomic

_SOURCES = Path(kopiatomic.__file__).parent

_BOUNDED = {
    "secrets.masking.hide_in": "as deep as our own JSON document",
    "state.root_leftovers._unused": "as deep as the directories that runs have made, which root alone can",
    "schedules.started.command": "as deep as root's own words start one command by another",
}
"""The exceptions, with what bounds their depth. This list may only shrink."""


def _recursive() -> Iterator[str]:
    for path in _SOURCES.rglob("*.py"):
        module = path.relative_to(_SOURCES).with_suffix("").as_posix().replace("/", ".")
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and _calls_itself(function):
                yield f"{module}.{function.name}"


def _calls_itself(function: ast.FunctionDef) -> bool:
    """By its plain name, or as a method of its own object; a method may call a function of the module that has its name."""
    is_method = bool(function.args.args) and function.args.args[0].arg in {"self", "cls"}
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    if is_method:
        attributes = [call for call in calls if isinstance(call, ast.Attribute) and call.attr == function.name]
        return any(isinstance(call.value, ast.Name) and call.value.id in {"self", "cls"} for call in attributes)
    return any(isinstance(call, ast.Name) and call.id == function.name for call in calls)


def test_no_function_calls_itself() -> None:
    assert sorted(_recursive()) == sorted(_BOUNDED)


def test_recursion_is_found() -> None:
    """The look itself: what it finds, and what it leaves alone."""
    source = "class A:\n    def f(self): self.f()\n    def g(self): return g()\ndef h(): return [h() for _ in ()]\n"
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert {function.name for function in functions if _calls_itself(function)} == {"f", "h"}
