"""Events of a run in columns: a number is eight bytes, where a dictionary an event takes nine times its line."""

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Event = dict[str, Any]
_EXACT = 1 << 53  # the first whole number that its neighbour shares a float with


class Events(Sequence[Event]):
    """The events of one kind, in order; each is made anew when it is asked for.

    Numbers are kept as floats, and come back as whole ones where all of their field are. All else is kept as it is, but
    for lists of lists of numbers, which are arrays.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._length = 0
        self._columns: dict[str, _Column] = {}
        for event in events:
            self.append(event)

    def append(self, event: Event) -> None:
        """Add an event behind the others."""
        for key, value in event.items():
            column = self._columns.get(key)
            if column is None:
                column = self._columns[sys.intern(key)] = _Column()
            column.put(self._length, value)
        self._length += 1

    def numbers(self, key: str) -> NDArray[np.float64]:
        """The field ``key`` of each event; NaN where there is none, and for a text that is no number."""
        column = self._columns.get(key, _Column())
        return column.floats(self._length)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, number: int) -> Event: ...
    @overload
    def __getitem__(self, number: slice) -> list[Event]: ...
    def __getitem__(self, number: int | slice) -> Event | list[Event]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(self._length))]
        place = number + self._length if number < 0 else number
        if not 0 <= place < self._length:
            raise IndexError(number)
        return {key: column.at(place) for key, column in self._columns.items() if column.has(place)}

    def __iter__(self) -> Iterator[Event]:
        return (self[place] for place in range(self._length))


class _Column:
    """One field: floats, with what is none of them apart, by the event's number."""

    def __init__(self) -> None:
        self._floats = array("d")
        self._others: dict[int, Any] = {}
        self._missing: set[int] = set()
        self._whole = True  # every number was a whole one

    def put(self, place: int, value: Any) -> None:
        self._missing.update(range(len(self._floats), place))
        self._floats.extend([np.nan] * (place - len(self._floats)))
        number = type(value) in (int, float) and (isinstance(value, float) or abs(value) < _EXACT)
        self._floats.append(float(value) if number else np.nan)
        if number:
            self._whole = self._whole and isinstance(value, int)
        else:
            self._others[place] = _packed(value)

    def has(self, place: int) -> bool:
        return place < len(self._floats) and place not in self._missing

    def at(self, place: int) -> Any:
        if place in self._others:
            return self._others[place]
        value = self._floats[place]
        return int(value) if self._whole else value

    def floats(self, length: int) -> NDArray[np.float64]:
        found = np.full(length, np.nan)
        found[: len(self._floats)] = self._floats
        for place, value in self._others.items():
            if isinstance(value, str | int):
                found[place] = _float(value)
        return found


def _packed(value: Any) -> Any:
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, list) and value and isinstance(value[0], list):
        try:
            return np.array(value, dtype=np.float64)
        except (TypeError, ValueError):  # ragged, or no numbers
            return value
    return value


def _float(value: str | int) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return np.nan
