"""Errors for names that do not exist."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, name: str, known: Iterable[str], remedy: str = "") -> str:
    """Return the message for an unknown name: what was expected, close matches, what to do."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    listed = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
    return f"unknown {kind}: expected one of {listed}; got {name!r}.{hint}{' ' + remedy if remedy else ''}"
