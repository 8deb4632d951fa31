"""What runs hold in memory, by kind, against the same model dense."""

from typing import Any

from smet_train.report.charts import Axis, Bars, Chart, LeftOut, Table
from smet_train.report.curves import Runs
from smet_train.report.runs import RunRecord

_TITLE = "State in memory by kind, against dense"
_MIB = 2**20


def _kinds(run: RunRecord) -> list[dict[str, Any]]:
    return list(run.last("memory").get("kinds", []))


def memory_chart(runs: Runs) -> Chart | LeftOut:
    """Stacked bars: one a run, and one for each different model if it were dense."""
    measured = {label: _kinds(run) for label, run in runs.items() if _kinds(run)}
    if not measured:
        return LeftOut(_TITLE, "memory is recorded when a run ends, and none has yet")
    names = list(dict.fromkeys(row["kind"] for rows in measured.values() for row in rows))
    held = {label: {row["kind"]: row["bytes"] for row in rows} for label, rows in measured.items()}
    for label, rows in measured.items():
        dense = {row["kind"]: row["dense_bytes"] for row in rows}
        if dense not in held.values():
            held["dense" if len(runs) == 1 or "dense" not in held else f"{label}, dense"] = dense
    drawn, tops = [], dict.fromkeys(held, 0.0)
    for color, name in enumerate(names):
        bottoms = tuple(tops.values())
        tops = {label: tops[label] + kinds.get(name, 0) / _MIB for label, kinds in held.items()}
        drawn.append(Bars(name, bottoms, tuple(tops.values()), color))
    return Chart(
        "memory", _TITLE, Axis("", categories=tuple(held)), Axis("held", "MiB", from_zero=True), bars=tuple(drawn)
    )


def memory_tables(runs: Runs) -> list[Table]:
    """Bytes by kind, a table a run."""
    tables = []
    for label, run in runs.items():
        rows = _kinds(run)
        if not rows:
            continue
        total = {"kind": "total", **{key: sum(row[key] for row in rows) for key in ("bytes", "dense_bytes")}}
        cells = tuple(_cells(row) for row in [*rows, total])
        columns = ("kind", "held, MiB", "dense, MiB", "held / dense")
        tables.append(Table(f"Memory by kind: {label}", columns, cells, folded=len(runs) > 1))
    return tables


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    ratio = f"{row['bytes'] / row['dense_bytes']:.3f}" if row["dense_bytes"] else "-"
    return row["kind"], f"{row['bytes'] / _MIB:.2f}", f"{row['dense_bytes'] / _MIB:.2f}", ratio
