"""Completeness of the property tests: every op has one."""

import ast
from pathlib import Path

OPS = Path(__file__).parents[2] / "ssl_lightning" / "ops"


def test_every_op_has_a_property_test() -> None:
    ops = {
        node.name
        for path in OPS.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    called = {
        node.func.id
        for path in Path(__file__).parent.glob("test_properties_*.py")
        for test in ast.parse(path.read_text()).body
        if isinstance(test, ast.FunctionDef)
        for node in ast.walk(test)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert len(ops) > 40
    assert not ops - called
