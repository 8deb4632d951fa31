"""The console script ``smet-eval``: the loss of a trained model, on its own validation text or another, and tasks."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smet_train.cli.flags import Flags, add_model_flags, check_exists, number, run_command
from smet_train.config.new_folder import check_writable
from smet_train.config.plugins import load_plugins
from smet_train.config.schema import DataSource, TextUnit
from smet_train.config.validate import FILE_SOURCES
from smet_train.errors import ConfigError, DataError
from smet_train.evaluation.extra import require_harness
from smet_train.importing import importing

EXAMPLES = """\
examples:
  smet-eval RUN                                           the loss that the run's own last evaluation gave
  smet-eval RUN --split validation                        on all documents that the run held out
  smet-eval RUN --data text --files 'books/*.txt'         on other text, to its last token
  smet-eval RUN --data hub --name allenai/c4 --subset en --max-tokens 10_000_000
  smet-eval RUN --tasks python_syntax --task-path examples/tasks
  smet-eval RUN --tasks hellaswag arc_easy --limit 100    tasks of the LM evaluation harness

RUN is a run folder, whose newest checkpoint is taken, or a checkpoint. The result is printed, and written as JSON
into the run folder: evals/step_XXXXXXXX-NAME.json."""

_ONLY_TASKS = ("task_path", "limit", "num_fewshot")
_ONLY_TEXT = ("split", "data", "files", "name", "subset", "hub_split", "text_field", "text_unit", "max_tokens")

_OF_SOURCES = {
    "files": tuple(FILE_SOURCES),
    "name": (DataSource.hub,),
    "subset": (DataSource.hub,),
    "hub_split": (DataSource.hub,),
    "text_field": (DataSource.jsonl, DataSource.parquet, DataSource.hub),
    "text_unit": (DataSource.text,),
}

# What a source's errors name, and what is typed here for it.
_FLAGS_OF_SETTINGS = (
    ("write data.on_bad=skip to leave such out", "leave the file out"),
    ("write data.on_bad=skip", "leave the file out"),
    ("data.files=[...]", "--files GLOB"),
    ("write data.text_field=, its columns", "write --text-field NAME; its columns"),
    ("data.files=", "--files "),
    ("data.files", "--files"),
    ("data.source=", "--data "),
    ("data.name=", "--name "),
    ("data.subset=", "--subset "),
    ("data.split=", "--hub-split "),
    ("data.text_field=", "--text-field "),
    ("data.max_bad_fraction=", "the run's data.max_bad_fraction="),
    ("data.max_document_bytes=", "the run's data.max_document_bytes="),
    ("data.retries=", "the run's data.retries="),
    ("data.validation_fraction=", "the run's data.validation_fraction="),
)


def main() -> None:
    """Run the command line; exits with 0 when done, 2 for a user's mistake, 1 for a failure."""
    run_command(_flags(), _run)


def _flags() -> Flags:
    flags = Flags(
        "smet-eval",
        "Loss, perplexity and bits per byte of a trained model, and its score on tasks.",
        EXAMPLES,
        "Lower --batch-size, or write --device cpu where the machine has more memory than its GPU",
    )
    add_model_flags(flags)
    flags.add_argument("--batch-size", type=number(int, 1), metavar="N", help="windows at once; default: as in the run")
    flags.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes instead")
    text = flags.add_argument_group("loss on a text")
    text.add_argument(
        "--split",
        choices=("eval", "validation", "all"),
        help="eval: the windows of the run's own evaluations (default); validation: all held-out documents; "
        "all: all documents (default with --data)",
    )
    text.add_argument("--data", choices=[source.name for source in DataSource], help="another source than the run's")
    text.add_argument("--files", nargs="+", metavar="GLOB", help="its files or URLs (text, jsonl, parquet)")
    text.add_argument("--name", help="its name on the Hugging Face hub (hub)")
    text.add_argument("--subset", help="its configuration (hub)")
    text.add_argument("--hub-split", help="its split (hub); default: validation")
    text.add_argument("--text-field", metavar="NAME", help="column of the text (jsonl, parquet, hub); default: text")
    text.add_argument("--text-unit", choices=[unit.name for unit in TextUnit], help="a document of a text file (text)")
    text.add_argument("--max-tokens", type=number(int, 1), metavar="N", help="stop after so many tokens")
    tasks = flags.add_argument_group("tasks of the LM evaluation harness (pip install 'smet-train[eval]')")
    tasks.add_argument("--tasks", nargs="+", metavar="NAME", help="names of tasks, instead of a text")
    tasks.add_argument("--task-path", type=Path, metavar="DIR", help="folder of task files of your own")
    tasks.add_argument("--limit", type=number(int, 1), metavar="N", help="documents of each task")
    tasks.add_argument("--num-fewshot", type=number(int, 0), metavar="N", help="examples before each question")
    return flags


def _run(given: argparse.Namespace) -> None:
    check_exists(given.checkpoint)
    _check(given)
    load_plugins(given.plugins)
    # Only now what imports torch: after the mistakes that need no model have been told.
    with importing():
        from smet_train.evaluation.report import evaluate_tasks, evaluate_text
        from smet_train.evaluation.results import EVALS_NAME, require_own_evals
        from smet_train.tracking.console import open_console
        from smet_train.train.device import choose_device
        from smet_train.trained import open_trained

    trained = open_trained(given.checkpoint, choose_device(given.device, "--device "), backend=given.backend)
    if given.out is None:
        check_writable(trained.run_folder / EVALS_NAME, "write --out FILE")
        require_own_evals(trained.run_folder / EVALS_NAME)
    console, command, started = open_console(), ["smet-eval", *sys.argv[1:]], time.perf_counter()
    console.print(f"{shlex.join(command)}\n{trained.checkpoint}, step {trained.step}", soft_wrap=True)
    common: dict[str, Any] = {"out": given.out, "batch_size": given.batch_size, "command": command, "started": started}
    if given.tasks:
        evaluate_tasks(console, trained, given.tasks, given.task_path, given.limit, given.num_fewshot, **common)
    else:
        split = given.split or ("all" if given.data else "eval")
        with _told_in_flags(given):
            evaluate_text(console, trained, split, _data(given), given.max_tokens, **common)


def _check(given: argparse.Namespace) -> None:
    """Raises ConfigError for flags that are at odds or a file that can't be written, DataError for missing files."""
    kind = None if given.data is None else DataSource[given.data]
    stray = _ONLY_TEXT if given.tasks else _ONLY_TASKS
    for name in stray:
        if getattr(given, name) is not None:
            flag = "--" + name.replace("_", "-")
            rule = "is for a text, not for --tasks" if given.tasks else "needs --tasks NAME"
            raise ConfigError(f"{flag} {rule}; leave one of them out")
    for name, kinds in _OF_SOURCES.items():
        if getattr(given, name) is not None and kind not in kinds:
            raise ConfigError(f"--{name.replace('_', '-')} needs --data {'|'.join(kind.name for kind in kinds)}")
    if kind in FILE_SOURCES and not given.files:
        raise ConfigError(f"--data {given.data} needs --files GLOB, for example --files 'corpus/*'")
    if kind is DataSource.hub and not given.name:
        raise ConfigError("--data hub needs --name, for example --name allenai/c4 --subset en")
    if kind is not None and given.split == "eval":
        raise ConfigError("--split eval is the windows of the run's own evaluations; leave --data out, or write all")
    if given.task_path is not None and not given.task_path.is_dir():
        raise ConfigError(f"--task-path {given.task_path} is no folder; give one that holds task files (*.yaml)")
    if given.out is not None:
        if os.path.isdir(given.out):
            raise ConfigError(f"--out {given.out} is a folder; give a file, for example {given.out / 'result.json'}")
        check_writable(given.out.parent, "give another file with --out")
    if given.tasks:
        require_harness()
    if given.files:
        from smet_train.data.files import expand

        with _told_in_flags(given):
            given.files = expand(given.files)


@contextmanager
def _told_in_flags(given: argparse.Namespace) -> Iterator[None]:
    """Inside, a mistake in a source that flags name is told in flags, instead of in settings of a run.

    Raises:
        DataError: the one raised inside.
    """
    try:
        yield
    except DataError as error:
        told = str(error)
        for setting, flag in _FLAGS_OF_SETTINGS if given.data else ():
            told = told.replace(setting, flag)
        raise DataError(told, exit_status=error.exit_status) from error


def _data(given: argparse.Namespace) -> dict[str, Any] | None:
    """The data settings that differ from the run's; None: its own data."""
    if given.data is None:
        return None
    return {
        "source": DataSource[given.data],
        "files": given.files or [],
        "name": given.name,
        "subset": given.subset,
        "split": given.hub_split or "validation",
        "text_field": given.text_field or "text",
        **({} if given.text_unit is None else {"text_unit": TextUnit[given.text_unit]}),
    }


if __name__ == "__main__":
    main()
