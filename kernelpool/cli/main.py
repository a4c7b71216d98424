"""The root command. It loads the module of a command when that is asked for: what serves takes a second to load, and
most commands talk to a gateway that runs."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from kernelpool import __version__

COMMANDS = {
    "cleanup": "serve:cleanup",
    "doctor": "serve:doctor",
    "exec": "execute:exec_",
    "files": "files:files",
    "images": "images:images",
    "keys": "keys:keys",
    "mcp": "mcp:mcp",
    "notebook": "notebooks:notebook",
    "pools": "pools:pools",
    "profile": "profile:profile",
    "run": "execute:run",
    "serve": "serve:serve",
    "sessions": "sessions:sessions",
    "shell": "execute:shell",
}
"""Where each is: a module here, and its name there."""

# As the settings have them, which would have to be loaded for it.
STATE_DIR = "Directory for what must survive a restart: sessions, sandboxes, runtime trees, the token's hash."
LOG_LEVEL = "What is logged, as JSON lines on stderr."


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"kernelpool.cli.{module}"), attribute)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kernelpool")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="KERNELPOOL_CONFIG",
    help="Settings in TOML, instead of kernelpool.toml in the working directory.",
)
@click.option("--state-dir", type=click.Path(path_type=Path), help=STATE_DIR)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help=LOG_LEVEL)
@click.pass_context
def main(context: click.Context, config: Path | None, state_dir: Path | None, log_level: str | None) -> None:
    """Self-hosted dynamic sessions: stateful, isolated, pre-warmed code interpreters.

    Every setting can also stand in the file, or in the environment as KERNELPOOL_<NAME>.
    """
    context.obj = (config, {"state_dir": state_dir, "log_level": log_level})
