"""How a test starts a Python program: as a fork, and where a fork can't show all of it in a new interpreter too."""

import subprocess

import pytest

from tests import forked

# For the argument ``programs`` of a test or of its fixtures: a module with ``run`` and ``Popen``.
BOTH = pytest.mark.parametrize(
    "programs",
    [
        pytest.param(forked, id=pytest.HIDDEN_PARAM),
        pytest.param(subprocess, id="process", marks=pytest.mark.process),
    ],
)


def without(*libraries: str) -> str:
    """Code after which smet_train is imported anew, also in a fork, and an import of ``libraries`` is an error."""
    return f"""
import sys
held = dict(sys.modules)
for name in held:
    if name.partition(".")[0] in {("smet_train", *libraries)}:
        del sys.modules[name]
class Refused:
    def find_spec(name, *_):
        assert name.partition(".")[0] not in {libraries}, name + " is imported"
sys.meta_path.insert(0, Refused)
"""
