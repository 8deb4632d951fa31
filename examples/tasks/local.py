"""Data of a task from a file beside it, wherever the harness is started.

The harness reads ``dataset_path: json`` with ``data_files`` as seen from the working directory; a task that names
``custom_dataset: !function local.read`` instead is read from its own folder.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset


def read(data_file: str, **_: Any) -> dict[str, Dataset]:
    """The split ``test``: the rows of the JSON lines file ``data_file``, seen from this folder.

    The harness hands over ``dataset_kwargs`` of the task, and its own ``--metadata`` and ``--model_args``.
    """
    lines = Path(__file__).with_name(data_file).read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
