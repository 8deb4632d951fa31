"""What trackers wrote, read back by their own formats, and what metrics.jsonl says that it should be."""

import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from smet_train.tracking.jsonl import read_events
from smet_train.tracking.names import FIELDS

Points = dict[str, list[tuple[int, Any]]]
_BLOCK = 32768
_HEADER = 7  # of the file, and of each part of a record: checksum, length, kind


def expected_points(run_folder: Path) -> Points:
    """(step, value) of every metric, from metrics.jsonl; written without the code under test."""
    points: Points = defaultdict(list)
    for event in read_events(run_folder / "metrics.jsonl"):
        source = f"{event['source']}_" if "source" in event else ""
        for field in FIELDS.get(event["event"], {}):
            if event.get(field) is not None:
                points[f"{event['event']}/{source}{field}"].append((event["step"], float(event[field])))
    return dict(points)


def single(points: Points) -> Points:
    """In the precision that TensorBoard keeps."""
    return {name: [(step, float(np.float32(value))) for step, value in line] for name, line in points.items()}


def tensorboard_points(folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb_rows(file: Path) -> list[dict[str, Any]]:
    """The history rows of a ``.wandb`` file: records in blocks, as in LevelDB's log, each a message of wandb's own."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts, rows = file.read_bytes(), _HEADER, b"", []
    while position < len(content):
        if _BLOCK - position % _BLOCK < _HEADER:
            position += _BLOCK - position % _BLOCK
        _, length, kind = struct.unpack("<IHB", content[position : position + _HEADER])
        parts += content[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record.FromString(parts)
            parts = b""
            if record.HasField("history"):
                rows.append({
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                })  # fmt: skip
    return rows


def wandb_points(rows: list[dict[str, Any]]) -> Points:
    """(step, value) of every metric on its own step axis."""
    points: Points = defaultdict(list)
    for row in rows:
        axis = next((key for key in row if key.endswith("step") and "/" in key), None)
        for key, value in row.items():
            if axis and key != axis and "/" in key:
                points[key].append((row[axis], float(value)))
    return dict(points)
