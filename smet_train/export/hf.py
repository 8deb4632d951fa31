"""A dense folder that plain transformers loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as transformers_logging

from smet_train.export.dense import dense_model, dense_tensors, value_dtype
from smet_train.trained import Trained


def write_hf(trained: Trained, folder: Path) -> None:
    """Write ``config.json``, ``generation_config.json`` and ``model.safetensors`` into ``folder``.

    Holds all dense weights in memory at once.
    """
    dense = dense_model(trained.model).to(value_dtype(trained.model))
    with _without_progress_bar():
        dense.save_pretrained(folder, state_dict=dense_tensors(trained.model))
    for path in folder.glob("*.safetensors"):  # safetensors writes for the owner alone; the rest is as the umask says
        path.chmod((folder / "config.json").stat().st_mode)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
