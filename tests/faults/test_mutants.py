"""Each deliberate bug of ``make mutants`` still has its place in the code."""

import pytest

from tests.faults.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_the_code_that_a_bug_replaces_is_there_once(mutant: Mutant) -> None:
    assert (ROOT / "smet_train" / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
