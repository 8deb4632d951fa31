"""Events and their fields, the same in metrics.jsonl, on the console, in wandb and in TensorBoard.

``FIELDS`` gives each event's numeric fields with meaning and unit. Fields of ``TIME_FIELDS`` depend on the clock, so
two runs that are otherwise equal differ in them. ``GRIDS`` has events that are more than numbers, in
metrics.jsonl alone.
"""

from typing import Any

FIELDS: dict[str, dict[str, str]] = {
    "train": {
        "loss": "mean cross-entropy of the step's batch, nats a token, before its update",
        "lr": "learning rate of the step, before any density scale",
        "grad_norm": "global gradient norm before clipping, sparse values included",
        "tokens": "tokens trained on so far",
        "tokens_per_s": "training speed over the last steps, evaluation and saving left out",
        "sent_bytes": "what each of several processes hands to collective operations in the step",
    },
    "eval": {
        "loss": "mean cross-entropy over the validation windows, nats a token",
        "perplexity": "exp(loss)",
        "tokens": "tokens that were predicted",
    },
    "topology": {
        "dropped": "values dropped, over all sparse layers",
        "grown": "values grown, over all sparse layers",
        "density": "active values over sites of the sparse layers",
        "drop_fraction": "fraction of active values that this update replaces",
        "survived": "fraction of the values grown by the update before that this one keeps",
        "mean_age_steps": "steps of their layer that the active values have existed, on average, after the update",
        "ever_active": "fraction of the sparse layers' sites that were ever active",
        "sent_bytes": "what each of several processes hands to collective operations in the update",
    },
    "spike": {
        "baseline": "loss before the update, nats a token",
        "peak": "highest loss within the horizon after the update, nats a token",
        "spike": "peak - baseline, nats a token",
        "recovery_steps": "steps after the update until the loss, past its peak, is at the baseline again",
    },
    "memory": {
        "rss_bytes": "resident memory of the process",
        "peak_rss_bytes": "highest resident memory of the process",
        "device_bytes": "memory that torch holds on the GPU",
        "peak_device_bytes": "highest memory that torch held on the GPU",
    },
}

GRIDS: dict[str, dict[str, str]] = {
    "topology_map": {
        "layer": "name of the layer, tracking.map_layer",
        "out_features": "rows of its matrix",
        "in_features": "columns of its matrix",
        "grid": "active over all sites in bins of the matrix, a list for each output bin; at most 32 x 32",
    },
}

TIME_FIELDS = frozenset({"time_s", "tokens_per_s"})

SOURCES: dict[str, tuple[str, ...]] = {"spike": ("train", "probe")}
"""Events that are measured on several losses, each with metrics and a step axis of its own."""


def prefix(event: dict[str, Any]) -> str:
    """What the names of an event's metrics begin with: ``train/``, ``spike/probe_``."""
    return f"{event['event']}/{event['source']}_" if "source" in event else f"{event['event']}/"


def prefixes() -> list[str]:
    """Of every event that has metrics."""
    kinds = [(kind, SOURCES.get(kind)) for kind in FIELDS]
    return [name for kind, of in kinds for name in ([f"{kind}/{source}_" for source in of] if of else [f"{kind}/"])]


def metrics(event: dict[str, Any]) -> dict[str, float]:
    """The fields of ``FIELDS`` under their full names, such as ``train/loss``; empty for an event that has none.

    Of an event from metrics.jsonl, "nan", "inf" and "-inf" are numbers again.
    """
    values = {key: event.get(key) for key in FIELDS.get(event["event"], {})}
    return {
        f"{prefix(event)}{key}": float(value) if isinstance(value, str) else value
        for key, value in values.items()
        if value is not None
    }
