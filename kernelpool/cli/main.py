"""The root command, its groups, and what runs on the machine of the gateway: serve, doctor, cleanup."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from kernelpool import __version__, server
from kernelpool.cli import execute, files, mcp, notebooks, pools, profile, sessions
from kernelpool.cli.images import images
from kernelpool.cli.keys import keys
from kernelpool.config import CONFIG_VARIABLE, FILE_NAME, Settings
from kernelpool.errors import KernelpoolError
from kernelpool.sources import describe
from kernelpool.telemetry.logs import configure_logging

T = TypeVar("T")


def _help(name: str) -> str:
    """A flag says what its setting says."""
    return Settings.model_fields[name].description or ""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kernelpool")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar=CONFIG_VARIABLE,
    help=f"Settings in TOML, instead of {FILE_NAME} in the working directory.",
)
@click.option("--state-dir", type=click.Path(path_type=Path), help=_help("state_dir"))
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help=_help("log_level"))
@click.pass_context
def main(context: click.Context, config: Path | None, state_dir: Path | None, log_level: str | None) -> None:
    """Self-hosted dynamic sessions: stateful, isolated, pre-warmed code interpreters.

    Every setting can also stand in the file, or in the environment as KERNELPOOL_<NAME>.
    """
    context.obj = (config, {"state_dir": state_dir, "log_level": log_level})


main.add_command(images)
main.add_command(keys)


@main.command()
@click.option("--host", help=_help("host"))
@click.option("--port", type=int, help=_help("port"))
@click.option("--allow-insecure", is_flag=True, default=None, help=_help("allow_insecure"))
@click.option("--stop-sessions", is_flag=True, default=None, help=_help("stop_sessions"))
@click.pass_context
def serve(context: click.Context, /, **flags: Any) -> None:
    """Run a gateway until SIGTERM or Ctrl-C."""
    settings = _settings(context, flags)

    async def run() -> None:
        serving = asyncio.create_task(server.serve(settings, click.echo, server.Stop()))
        # Until it serves there is nothing to drain: SIGTERM ends it as Ctrl-C does.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
        await serving

    _run(run())


@main.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Start a throw-away sandbox and say what it promises on this machine."""
    findings = _run(server.doctor(_settings(context), click.echo))
    for pool, lines in findings.items():
        click.echo(f"\npool {pool}")
        for finding in lines:
            click.echo(f"  {describe(finding)}")
    if any(finding.essential and not finding.holds for lines in findings.values() for finding in lines):
        raise click.ClickException("sandboxes do not isolate on this machine; see above how to mend it")
    click.echo("\nSandboxes isolate on this machine.")


@main.command()
@click.pass_context
def cleanup(context: click.Context) -> None:
    """Destroy all sandboxes of the state directory, with every session in them."""
    count = _run(server.cleanup(_settings(context), click.echo))
    click.echo(f"{count} sandboxes destroyed.")


def _settings(context: click.Context, flags: dict[str, Any] | None = None) -> Settings:
    config, common = context.obj
    try:
        settings = Settings.load(config, os.environ, {**common, **(flags or {})})
    except KernelpoolError as error:
        raise click.ClickException(error.message) from error
    configure_logging(settings.log_level)
    return settings


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except KernelpoolError as error:
        raise click.ClickException("\n".join([error.message, *getattr(error, "__notes__", [])])) from error
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


for command in (
    execute.run,
    execute.exec_,
    notebooks.notebook,
    execute.shell,
    files.files,
    mcp.mcp,
    pools.pools,
    profile.profile,
    sessions.sessions,
):
    main.add_command(command)
