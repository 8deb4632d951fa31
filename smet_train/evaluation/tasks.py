"""Tasks of the LM evaluation harness on a trained model."""

import logging
from pathlib import Path
from typing import Any

from smet_train.errors import ConfigError
from smet_train.evaluation.extra import require_harness
from smet_train.trained import Trained


def run_tasks(
    trained: Trained,
    tasks: list[str],
    *,
    task_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 1,
) -> dict[str, Any]:
    """Results of ``tasks`` by name, with what the harness says of each: shots, documents, version.

    Args:
        task_path: a folder of task files; the harness's own are known too.
        limit: documents of each task.
        num_fewshot: examples before each question; None = as the task says.

    Raises:
        ConfigError: if the harness is not installed or knows no such task.
    """
    require_harness()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from smet_train.evaluation.harness import SmetLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _known(TaskManager, tasks, task_path)
    found: dict[str, Any] = simple_evaluate(
        model=SmetLM(trained, batch_size=batch_size),
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        log_samples=False,
    )
    kept = ("results", "groups", "n-shot", "n-samples", "higher_is_better")
    return {**{key: found[key] for key in kept if key in found}, "task_versions": found["versions"]}


def _known(manager_class: Any, tasks: list[str], task_path: Path | None) -> Any:
    """A task manager that knows all ``tasks``; reading the harness's own thousands takes it a while."""
    manager: Any = None
    for with_own in (False, True) if task_path else (True,):
        manager = manager_class(include_path=str(task_path) if task_path else None, include_defaults=with_own)
        unknown = [task for task in tasks if not manager.match_tasks([task])]
        if not unknown:
            return manager
    where = f"neither {task_path} nor the harness has" if task_path else "the harness does not have"
    raise ConfigError(
        f"{where} the task {unknown[0]}; `lm_eval ls tasks` lists the harness's own, and --task-path DIR reads yours"
    )
