"""A look at code before it runs, which catches a model's careless code early. It keeps nobody out.

Python offers more ways around such a list than anybody could write down, and `matplotlib.os` is one. What holds code
that means harm is the sandbox; this check spares an attempt and tells the model in plain words what is not wanted.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

MODULES = {"collections", "datetime", "itertools", "json", "math", "matplotlib", "numpy", "pandas", "statistics"}
NAMES = {"breakpoint", "compile", "delattr", "eval", "exec", "getattr", "globals", "input", "open", "setattr", "vars"}


def objections(code: str) -> list[str]:
    """What speaks against running it, with its line; nothing for most charts."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return [f"it is no Python: {error}"]
    return list(dict.fromkeys(text for node in ast.walk(tree) for text in _objections_to(node)))


def _objections_to(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            modules = [alias.name for alias in names]
        case ast.ImportFrom(module=module):
            modules = [module or "."]
        case ast.Name(id=name) if name in NAMES or name.startswith("__"):
            yield f"line {node.lineno} uses {name}"
            return
        case ast.Attribute(attr=name) if name.startswith("__"):
            yield f"line {node.lineno} reaches for {name}"
            return
        case _:
            return
    for module in modules:
        if module.partition(".")[0] not in MODULES:
            yield f"line {node.lineno} imports {module}"
