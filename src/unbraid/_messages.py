"""Errors in the user's words."""

from __future__ import annotations

import operator
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def suggest(name: object, options: Iterable[object]) -> str:
    """Say what there is instead of ``name``: the closest match if one is close, and the options.

    Parameters
    ----------
    name
        What was asked for.
    options
        What exists.
    """
    options = [str(option) for option in options]
    close = get_close_matches(str(name), options, n=1, cutoff=0.6)
    shown = ", ".join(repr(option) for option in options[:12]) + (", ..." if len(options) > 12 else "")
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return f"{guess}There is: {shown or 'nothing'}."


def check_whole(name: str, value: Any, minimum: int) -> None:
    """Raise unless ``value`` is a whole number of at least ``minimum``."""
    try:
        ok = operator.index(value) >= minimum
    except TypeError:
        ok = False
    if not ok:
        raise ValueError(f"`{name}` must be a whole number of at least {minimum}, got {value!r}.")


def check_option(name: str, value: object, options: Iterable[object]) -> None:
    """Raise unless ``value`` is one of ``options``."""
    options = list(options)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, not {value!r}.")


def check_range(name: str, value: object, ok: bool, rule: str) -> None:
    """Raise unless ``ok``: say what ``value`` must be."""
    if not ok:
        raise ValueError(f"{name} must be {rule}, not {value}.")
