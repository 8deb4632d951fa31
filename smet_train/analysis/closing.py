"""The last lines of a run: where everything is, and what to type next."""

import shlex
from pathlib import Path

from smet_train.train.checkpoint import latest_checkpoint


def typed(folder: Path) -> str:
    """``folder`` as it is typed in the current one: relative if it lies inside, quoted if the shell needs it."""
    here = Path.cwd()
    return shlex.quote(str(folder.relative_to(here) if folder.is_relative_to(here) else folder))


def where_lines(run_folder: Path) -> list[str]:
    """The run folder, and what is in it; a run without a checkpoint has no line for one."""
    newest = latest_checkpoint(run_folder / "checkpoints")
    checkpoint = [] if newest is None else [f"checkpoint  {newest.relative_to(run_folder)}"]
    return [f"run folder  {run_folder}", *checkpoint, "files       metrics.jsonl, config.yaml, train.log"]


def next_lines(run_folder: Path, steps: int) -> list[str]:
    """What a run that is finished at ``steps`` steps is good for."""
    folder = typed(run_folder)
    commands = [
        (f"smet-report {folder}", "curves, layers and topology on one page"),
        (f"smet-eval {folder}", "its loss on held-out text"),
        (f"smet-generate {folder} 'The '", "what it writes"),
        (f"smet-export {folder} --format hf --out exported", "for transformers"),
        (f"smet-train resume {folder} train.steps={2 * steps}", "more steps"),
    ]
    width = max(len(command) for command, _ in commands)
    return ["next", *(f"  {command:<{width}}  {purpose}" for command, purpose in commands)]


def stopped_lines(run_folder: Path, reason: str, step: int, total_steps: int) -> list[str]:
    """How to go on with a run that was stopped."""
    return [
        f"{reason}: stopped at step {step:,} of {total_steps:,} with a checkpoint; type the same command to go on, or",
        f"  smet-train resume {typed(run_folder)}",
    ]
