"""Text where it leaves the program: a terminal, a log, a page, a table, a tracker.

What it holds may be somebody else's: a name of a file, a setting, an error of a server. It is shown as it is, and does
nothing; and what lets whoever has it into a server is left out.
"""

import csv
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Control characters move a terminal's cursor, rename its window or answer for whoever sits there; marks of direction
# show a text in another order than it has.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_URL = re.compile(r"(?<=://)[^\s'\"<>`|\]]+")
_NEXT_URL = re.compile(r",(?=[A-Za-z][\w+.-]*://)")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    r"""``text`` with its control characters, but for line ends and tabs, as escapes such as ``\x1b``."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def without_secrets(text: str) -> str:
    """``text`` whose URLs have no user, password, query or fragment: a query may be a signature."""
    return _URL.sub(lambda found: ",".join(map(_place, _NEXT_URL.split(found[0]))), text) if "://" in text else text


def _place(url: str) -> str:
    """What begins behind ``://``, up to where it says what is there; or behind a further one, in a list."""
    scheme, separator, rest = url.rpartition("://")
    # A password may hold what begins a query.
    rest = re.sub(r"^([^/?#@:]*:[^/]*|[^/?#]*)@", "", rest)
    place, *query = re.split(r"[?#]", rest, maxsplit=1)
    end = re.search(r"[:;,.)}]*$", query[0]) if query else None
    return f"{scheme}{separator}{place}{end[0] if end else ''}"


def shown(text: str) -> str:
    """``text`` as it may leave the program."""
    return visible(without_secrets(text))


def all_shown(value: Any) -> Any:
    """``value`` with every text in its dictionaries and lists as :func:`shown`."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {all_shown(key): all_shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [all_shown(item) for item in value]
    return value


def cell(value: Any) -> Any:
    """What a cell of a CSV file holds: a text that a spreadsheet would compute as a formula begins with a quote."""
    if not isinstance(value, str):
        return value
    value = shown(value)
    return f"'{value}" if value.startswith(_FORMULA) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def write_rows(file: Any, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """CSV with a head, every cell as :func:`cell`."""
    writer = csv.DictWriter(file, tuple(columns))
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)


class ShownFormatter(logging.Formatter):
    """Lines of a log, as they may leave the program."""

    def format(self, record: logging.LogRecord) -> str:
        """As logging calls it."""
        return shown(super().format(record))
