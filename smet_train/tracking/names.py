"""Events and their fields, the same in metrics.jsonl, on the console and in wandb.

``FIELDS`` gives each event's numeric fields with meaning and unit. Fields of ``TIME_FIELDS`` depend on the clock, so
two runs that are otherwise equal differ in them. ``GRIDS`` has events that are more than numbers, in
metrics.jsonl alone.
"""

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
        "mean_age_steps": "steps that the active values have existed, on average, after the update",
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
