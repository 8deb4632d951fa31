"""Where events go: the metrics file first, then any number of displays that may fail without stopping a run."""

import logging
from typing import Any, Protocol

from smet_train.tracking.jsonl import MetricsFile

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes the events of a run, each a flat dictionary with an "event" key."""

    def emit(self, event: dict[str, Any]) -> None:
        """Take one event."""

    def close(self) -> None:
        """The run is over; called once."""


class Tracker:
    """Passes every event to the metrics file and to the added sinks.

    An error of the metrics file is an error of the run. Any other sink that raises is dropped with one warning.
    """

    def __init__(self, metrics: MetricsFile) -> None:
        self.metrics = metrics
        self.sinks: list[Sink] = []

    def add(self, sink: Sink) -> None:
        """Pass later events to ``sink`` too."""
        self.sinks.append(sink)

    def emit(self, event: dict[str, Any]) -> None:
        """Pass on one event, to the metrics file first.

        Raises:
            what the metrics file raises; a display that raises is left out from then on.
        """
        self.metrics.emit(event)
        for sink in list(self.sinks):
            try:
                sink.emit(event)
            except Exception as error:
                # A tracker on the network can fail in any way; none of them is worth a run.
                log.warning("%s failed and is left out from now on: %r", type(sink).__name__, error)
                self.sinks.remove(sink)

    def close(self) -> None:
        """Close all of them; a display that fails to close is told in a warning."""
        for sink in self.sinks:
            try:
                sink.close()
            except Exception as error:
                log.warning("%s failed to close: %r", type(sink).__name__, error)
        self.metrics.close()
