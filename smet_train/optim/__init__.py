"""The optimizer: AdamW with local steps, its parameter groups and schedules. Needs torch only."""

from smet_train.optim.fused import FusedStep
from smet_train.optim.groups import parameter_groups, peak_rates
from smet_train.optim.schedules import LrSchedule
from smet_train.optim.smet_adamw import SmetAdamW

__all__ = ["FusedStep", "LrSchedule", "SmetAdamW", "parameter_groups", "peak_rates"]
