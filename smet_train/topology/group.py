"""The processes that make a topology update together, as an update knows them."""

from typing import Protocol

from torch import Tensor

from smet_train.sparse.shards import whole


class Group(Protocol):
    """``size`` processes, of which this is ``rank``; all of them call every method in the same order."""

    rank: int
    size: int

    def add_up(self, tensor: Tensor) -> object:
        """Replace ``tensor`` by its sum over all."""

    def add_up_in(self, tensor: Tensor, owner: int) -> object:
        """Replace ``tensor`` by its sum over all in the process ``owner``; elsewhere what it holds is lost."""

    def spread(self, tensor: Tensor, owner: int) -> object:
        """Replace ``tensor`` by that of the process ``owner``."""

    def whole(self, part: Tensor, like: Tensor) -> Tensor:
        """As :func:`smet_train.sparse.shards.whole`."""


class _Alone:
    """One process: every sum over all is what it holds."""

    rank = 0
    size = 1

    def add_up(self, tensor: Tensor) -> None:
        pass

    def add_up_in(self, tensor: Tensor, owner: int) -> None:
        pass

    def spread(self, tensor: Tensor, owner: int) -> None:
        pass

    def whole(self, part: Tensor, like: Tensor) -> Tensor:
        return whole(part, like)


ALONE: Group = _Alone()
