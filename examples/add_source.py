"""A data source of one's own: the texts in a table of an SQLite file.

    smet-train +experiment=demo plugins=[examples/add_source.py] data.source=sqlite \\
        data.files=[corpus.db] data.name=articles data.text_field=body
"""

import sqlite3
from collections.abc import Sequence

from smet_train.data.sources import SourceSpec, register_source
from smet_train.errors import DataError


class Table(Sequence[str]):
    """Anything with len() and [i] will do; a document is read when its turn comes, from a second thread."""

    def __init__(self, spec: SourceSpec) -> None:
        if len(spec.files) != 1 or spec.name is None:
            raise DataError("data.source=sqlite needs data.files=[FILE.db] and data.name=TABLE")
        try:
            self._file = sqlite3.connect(f"file:{spec.files[0]}?mode=ro", uri=True, check_same_thread=False)
            rows = self._file.execute(f'SELECT rowid FROM "{spec.name}" ORDER BY rowid')
            self._rows = [row for (row,) in rows]
        except sqlite3.Error as error:
            raise DataError(f"data.files={list(spec.files)} data.name={spec.name}: {error}") from error
        self._query = f'SELECT "{spec.text_field}" FROM "{spec.name}" WHERE rowid = ?'

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number):
        return self._file.execute(self._query, (self._rows[number],)).fetchone()[0]


register_source("sqlite", Table)  # positions, held-out documents, shuffling and resuming are taken care of
