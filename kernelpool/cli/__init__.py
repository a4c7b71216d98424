"""The command line: one module a group of commands, `main` the root. The only reader of the environment."""

from kernelpool.cli.main import main

__all__ = ["main"]
