"""No setting is accepted and ignored."""

import ast
from pathlib import Path

import pytest

import smet_train
from smet_train.config.fields import leaves
from smet_train.config.schema import Config

# Only these turn settings into behaviour; a check in validate.py, say, is not a use.
USERS = ("build.py", "build_data.py", "sparse_model.py", "job.py", "trackers.py", "config/identity.py")


def attribute_chain(node: ast.AST) -> str:
    """``config.data.name`` for that expression, "" for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else ""


def expressions_read() -> set[str]:
    """Every ``config.….…`` that the code reads."""
    package = Path(smet_train.__file__).parent
    chains = set()
    for user in USERS:
        for node in ast.walk(ast.parse((package / user).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                chains.add(attribute_chain(node).removesuffix(".name"))
                chains.add(attribute_chain(node))
    return chains


@pytest.mark.parametrize("key", [leaf.key for leaf in leaves(Config())])
def test_the_code_reads(key: str) -> None:
    assert f"config.{key}" in expressions_read()
