"""`kernelpool images`: the images that a container engine makes sandboxes from, built and listed on that engine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from kernelpool.backends.docker import build as builder
from kernelpool.backends.docker.build import IMAGE, INPUTS, Plan
from kernelpool.backends.docker.context import find_target, targets
from kernelpool.backends.docker.engine import Engine
from kernelpool.cli.remote import json_option, told
from kernelpool.cli.terminal import clean, print_json, print_table
from kernelpool.config import Settings
from kernelpool.errors import PrepareFailed

_GATEWAY = "gateway"


@click.group()
def images() -> None:
    """Build and list the images of Docker pools, on the engine of the settings ([docker], or DOCKER_HOST)."""


def _arguments(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    if wrong := [name for name, equals, _ in pairs if not name or not equals]:
        raise click.BadParameter(f"{wrong[0]!r} is not of the form NAME=VALUE")
    return {name: value for name, _, value in pairs}


@images.command()
@click.argument("names", nargs=-1, metavar="[IMAGE]...")
@click.option("--base", default="", help="Image with Python to start from.  [default: docker.base_image]")
@click.option("--tag", default="", help="Name for the one image that is built, instead of kernelpool-IMAGE:VERSION.")
@click.option("--network", default="", help="The engine's network to fetch packages from, such as host.")
@click.option(
    "--build-arg",
    "arguments",
    multiple=True,
    callback=_arguments,
    metavar="NAME=VALUE",
    help="For the build, such as HTTPS_PROXY or PIP_INDEX_URL; no secrets, the engine keeps it. Can be repeated.",
)
@click.option("--fresh", is_flag=True, help="Build all steps, even those that the engine remembers.")
@json_option
@click.pass_context
def build(context: click.Context, /, names: tuple[str, ...], tag: str, as_json: bool, **options: Any) -> None:
    """Build images: of runtimes, by name, or `net`, or `gateway`. Without a name, all that pools need.

    A gateway builds what it misses when it starts; this does it ahead, where you see it.
    """
    wanted = names or tuple(name for name in targets() if name != _GATEWAY)
    if tag and len(wanted) != 1:
        raise click.UsageError("--tag is for one image; name it.")
    with _told(as_json):
        plans = [Plan(find_target(name), tag, **options) for name in wanted]
        built = asyncio.run(_build(_settings(context), plans))
    if as_json:
        print_json(built)
    else:
        print_table(("IMAGE", "NAME", "ID"), [(each["image"], each["name"], each["id"]) for each in built])


@images.command("list")
@json_option
@click.pass_context
def list_(context: click.Context, /, as_json: bool) -> None:
    """The images of kernelpool on the engine; which of them this version would use."""
    with _told(as_json):
        found = asyncio.run(_list(_settings(context)))
    if as_json:
        print_json(found)
        return
    rows = [
        (each["image"], ", ".join(each["names"]), each["id"], f"{each['size'] / 1e6:.0f} MB", each["created"][:10])
        for each in found
    ]
    current = ["yes" if each["current"] else "no" for each in found]
    columns = ("IMAGE", "NAME", "ID", "SIZE", "CREATED", "CURRENT")
    print_table(columns, [(*row, used) for row, used in zip(rows, current, strict=True)])


async def _build(settings: Settings, plans: Sequence[Plan]) -> list[dict[str, str]]:
    built = []
    async with Engine(settings.docker) as engine:
        with _progress() as progress:
            for plan in plans:
                shown = _Shown(progress, progress.add_task(f"{plan.target.name}: sending", total=None), plan)
                id = await builder.build(engine, replace(plan, base=plan.base or engine.base_image), shown)
                shown.done()
                built.append({"image": plan.target.name, "name": plan.name, "id": id})
    return built


async def _list(settings: Settings) -> list[dict[str, Any]]:
    digests = await asyncio.to_thread(lambda: {name: target.digest() for name, target in targets().items()})
    async with Engine(settings.docker) as engine:
        found = await engine.call(lambda client: client.images(filters={"label": IMAGE}))
    return [_entry(image, digests) for image in sorted(found, key=lambda image: -image["Created"])]


def _entry(image: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    name = image["Labels"][IMAGE]
    return {
        "image": name,
        "names": [tag for tag in image["RepoTags"] or () if tag != "<none>:<none>"],
        "id": image["Id"],
        "size": image["Size"],
        "created": datetime.fromtimestamp(image["Created"], UTC).isoformat(),
        "current": digests.get(name) == image["Labels"].get(INPUTS),
    }


class _Shown:
    """A build's progress: a bar for who looks at a terminal, else a line for each thing that is said."""

    def __init__(self, progress: Progress, task: TaskID, plan: Plan) -> None:
        self._progress = progress
        self._task = task
        self._name = plan.target.name

    def __call__(self, heard: builder.Progress) -> None:
        # A step counts when the next one begins.
        words = heard.text or "building"
        self._progress.update(
            self._task,
            total=heard.steps,
            completed=heard.step - 1,
            description=clean(f"{self._name}: {words}", sys.stderr),
        )
        if heard.text and self._progress.disable:
            click.echo(f"{self._name}: {words}", err=True)

    def done(self) -> None:
        self._progress.update(self._task, total=1, completed=1, description=f"{self._name}: built")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())


def _settings(context: click.Context) -> Settings:
    config, common = context.find_root().obj
    return Settings.load(config, os.environ, common)


@contextmanager
def _told(as_json: bool) -> Iterator[None]:
    """As everywhere, but that the last lines of a failed build stay lines."""
    with told(as_json):
        try:
            yield
        except PrepareFailed as error:
            if as_json:
                raise
            raise click.ClickException(clean(error.message, sys.stderr)) from error
