"""What a topology update moves and what it holds, before there is one."""

from collections.abc import Mapping

from smet_train.sparse.layout import Layout
from smet_train.sparse.ledger import LedgerRow
from smet_train.sparse.linear import SparseLinear
from smet_train.topology.exploration import exploration_bytes
from smet_train.topology.group import ALONE, Group
from smet_train.topology.probe import probe_bytes
from smet_train.topology.rules import MoveRules
from smet_train.topology.schedule import TopologySchedule
from smet_train.topology.sharded_probe import are_sharded, sharded_probe_bytes


def move_count(layout: Layout, drop_fraction: float) -> int:
    """How many values an update moves: floor(zeta * K), or as many as there are inactive sites (SMET, section 3)."""
    return min(int(drop_fraction * layout.n_active), layout.n_inactive)


def topology_ledger(
    layers: Mapping[str, SparseLinear],
    schedule: TopologySchedule | None,
    rules: MoveRules,
    *,
    explore: bool,
    probe_micro_batches: int,
    group: Group = ALONE,
) -> list[LedgerRow]:
    """Bytes that a :class:`TopologyUpdater` of these arguments holds: always, and at most during an update.

    Args:
        probe_micro_batches: of all processes of ``group``.
    """
    if schedule is None or rules.prunes:
        return []
    largest = schedule.largest_fraction()
    counts = {name: move_count(layer.layout, largest) for name, layer in layers.items()}
    grown = counts if rules.grow == "gradient" else dict.fromkeys(counts, 0)
    probe = 0
    if rules.needs_gradient and are_sharded(layers):
        own = probe_micro_batches // group.size
        probe = sharded_probe_bytes(layers, grown, own, rules.scores_gradient, group)
    elif rules.needs_gradient:
        probe = probe_bytes(layers, grown, probe_micro_batches, rules.scores_gradient)
    rows = [
        LedgerRow("exploration", exploration_bytes(layers) if explore else 0, 0),
        LedgerRow("gradient probe", probe, 0),
    ]
    return [row for row in rows if row.bytes]
