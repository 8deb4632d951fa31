"""Workers of a benchmark that predict nothing."""

from smet_train.bench.jobs import _start_worker
from tests import forked


def start_worker() -> None:
    forked.unpredicted()
    _start_worker()
