"""Decides when, how much, which pattern and which weights; :mod:`apply` alone changes anything. Needs torch only."""

from smet_train.topology.move import Move, make_move
from smet_train.topology.rules import MoveRules, Question, register_drop, register_grow
from smet_train.topology.schedule import TopologySchedule
from smet_train.topology.updater import TopologyUpdater

__all__ = [
    "Move",
    "MoveRules",
    "Question",
    "TopologySchedule",
    "TopologyUpdater",
    "make_move",
    "register_drop",
    "register_grow",
]
