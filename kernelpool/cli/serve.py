"""What runs on the machine of the gateway: serve, doctor, cleanup."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import click

from kernelpool import server
from kernelpool.config import Settings, sentence
from kernelpool.errors import KernelpoolError
from kernelpool.sources import describe
from kernelpool.telemetry.logs import configure_logging

T = TypeVar("T")


@click.command()
@click.option("--host", help=sentence("host"))
@click.option("--port", type=int, help=sentence("port"))
@click.option("--allow-insecure", is_flag=True, default=None, help=sentence("allow_insecure"))
@click.option("--stop-sessions", is_flag=True, default=None, help=sentence("stop_sessions"))
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


@click.command()
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


@click.command()
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
