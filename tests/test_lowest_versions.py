"""The script that trains and tests with the lowest versions pins every dependency to its bound."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

SCRIPT = Path(__file__).parent.parent / "scripts" / "lowest_versions.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    found = importlib.util.spec_from_file_location("lowest_versions", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_every_dependency_is_pinned_to_a_version_that_it_allows(script: ModuleType) -> None:
    package, tests = script.requirements()
    pinned = script.lowest(package, [])
    assert len(pinned) == len(package)
    assert {Requirement(text).name for text in tests} == {"hypothesis", "pytest", "pytest-timeout", "pytest-xdist"}
    for allowed, pin in zip(map(Requirement, package), map(Requirement, pinned), strict=True):
        (version,) = (specifier.version for specifier in pin.specifier)
        assert (pin.name, pin.extras) == (allowed.name, allowed.extras)
        assert version in allowed.specifier
        assert f">={version}" in str(allowed.specifier).split(",")


def test_a_version_that_is_kept_is_not_lowered(script: ModuleType) -> None:
    assert script.lowest(["torch>=2.11", "numpy>=2"], ["torch==2.13.0"]) == ["torch==2.13.0", "numpy==2"]


def test_a_dependency_without_a_lowest_version_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match=re.escape("numpy<3 in pyproject.toml has no lower bound; write numpy<3>=")):
        script.lowest(["numpy<3"], [])


def test_its_tests_are_there(script: ModuleType) -> None:
    assert all((SCRIPT.parent.parent / name).exists() for name in script.TESTS)
