"""Images on a real engine: built once and found again, as small and as closed as said, and told apart from others."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest

from kernelpool import __version__
from kernelpool.backends.base import Say
from kernelpool.backends.bwrap_argv import ENVIRONMENT, PROGRAM, PYTHON
from kernelpool.backends.docker.engine import Engine
from kernelpool.backends.docker.image import Image
from kernelpool.backends.docker.images import LOOK, find_or_build
from kernelpool.backends.docker.settings import DEFAULT_HOST, DockerSettings
from kernelpool.errors import PrepareFailed
from kernelpool.runtimes import load_runtimes
from tests.e2e.gateways import until
from tests.e2e.test_cli import Shell
from tests.engine import BASE, base_image, build_from, engine_client, image_of

# The first test of all builds what the others use.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

CONSTRAINTS = Path(__file__).parents[2] / "kernels/python/constraints.txt"


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.APIClient]:
    with engine_client() as client:
        yield client


@pytest.fixture(scope="module")
def python() -> str:
    """The id of the runtime's image."""
    return image_of("python")


@pytest.fixture
def images(tmp_path: Path, engine: docker.APIClient) -> Shell:
    return Shell(tmp_path, DOCKER_HOST=DEFAULT_HOST)


def prepare(image: str = "", say: Say = print) -> Image:
    runtime = replace(load_runtimes()["python"], image=image)

    async def get() -> Image:
        async with Engine(DockerSettings(host=DEFAULT_HOST)) as engine:
            return await find_or_build(engine, runtime, say)

    return asyncio.run(get())


def inspect(engine: docker.APIClient, image: str) -> dict[str, Any]:
    found: dict[str, Any] = engine.inspect_image(image)  # type: ignore[no-untyped-call]
    return found


def run(engine: docker.APIClient, image: str, *argv: str) -> str:
    """As a sandbox is: nothing may be written, nothing reached."""
    config = engine.create_host_config(network_mode="none", read_only=True, cap_drop=["ALL"], tmpfs={"/tmp": ""})
    made = engine.create_container(
        image, entrypoint=list(argv), host_config=config, labels={"io.kernelpool.test": "run"}
    )
    try:
        engine.start(made["Id"])
        code = engine.wait(made["Id"])["StatusCode"]
        output = engine.logs(made["Id"]).decode()
    finally:
        engine.remove_container(made["Id"], force=True)
    assert code == 0, output
    return output.strip()


def test_an_image_that_is_there_is_found_and_not_built_again(python: str) -> None:
    said: list[str] = []

    image = prepare(say=said.append)

    assert image.id == python
    assert said == []


def test_an_image_holds_what_is_pinned_and_says_so(python: str) -> None:
    metadata = prepare().metadata

    held = {f"{package.name}=={package.version}" for package in metadata.packages}
    assert held == {line for line in CONSTRAINTS.read_text().splitlines() if line[0] != "#"}
    assert metadata.language == "python"
    assert metadata.language_version.startswith("3.")
    assert metadata.kernel_name == "ipykernel"


def test_an_image_says_what_it_is(engine: docker.APIClient, python: str) -> None:
    config = inspect(engine, python)["Config"]

    assert config["User"] == "65532:65532"
    assert config["Labels"]["io.kernelpool.runtime"] == "python"
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert {f"{name}={value}" for name, value in ENVIRONMENT.items()} <= set(config["Env"])
    assert not config.get("Volumes")
    assert not config.get("ExposedPorts")


def test_nothing_in_an_image_belongs_to_its_user_and_everything_can_be_read(
    engine: docker.APIClient, python: str
) -> None:
    wrong = "find /opt /mnt /run/kp ! -user 0 -o -perm /7022 ! -type l -o ! -perm -0444 ! -type l"

    assert run(engine, python, "sh", "-c", wrong) == ""


def test_an_image_has_no_compiler_and_no_cache(engine: docker.APIClient, python: str) -> None:
    wanted = "command -v cc gcc make; find /opt /tmp /var/tmp -name '*.whl' -o -path '*/.cache/*'"

    assert run(engine, python, "sh", "-c", f"{wanted}; true") == ""


def test_all_that_a_kernel_imports_is_compiled_and_never_compared_with_its_source(
    engine: docker.APIClient, python: str
) -> None:
    code = (
        "import json, sys, pandas, matplotlib.pyplot, sklearn, asyncio, email, ipykernel.kernelapp, tornado.web, zmq\n"
        "def flags(path): return int.from_bytes(open(path, 'rb').read(8)[4:], 'little')\n"
        "files = [m.__cached__ for m in list(sys.modules.values()) if getattr(m, '__cached__', None)]\n"
        "print(json.dumps([len(files), [file for file in files if flags(file) != 1]]))"
    )

    count, others = json.loads(run(engine, python, PYTHON, "-I", "-Xfrozen_modules=off", "-c", code).splitlines()[-1])

    assert count > 500
    assert [file for file in others if "sitecustomize" not in file] == []  # which Debian has compiled itself


def test_the_agents_program_starts_where_nothing_can_be_written(engine: docker.APIClient, python: str) -> None:
    assert "--listen" in run(engine, python, PYTHON, "-I", PROGRAM, "--help")


@pytest.fixture
def derived(engine: docker.APIClient, python: str) -> Iterator[str]:
    """One that somebody has built FROM ours, with a package more."""
    name = f"kernelpool-test-derived:{uuid.uuid4().hex[:8]}"
    script = (
        f"FROM {python}\n"
        "USER 0\n"
        "RUN cd /opt/venv/lib/python3*/site-packages && mkdir more-1.2.dist-info "
        "&& printf 'Metadata-Version: 2.1\\nName: more\\nVersion: 1.2\\n' > more-1.2.dist-info/METADATA\n"
    )
    build_from(engine, script, name)
    yield name
    engine.remove_image(name, force=True)


def test_what_somebody_builds_from_ours_is_not_taken_for_it(python: str, derived: str) -> None:
    assert prepare().id == python


def test_an_image_that_is_named_is_used_as_it_is_and_says_what_it_holds_itself(
    engine: docker.APIClient, derived: str
) -> None:
    image = prepare(derived)

    assert image.id == inspect(engine, derived)["Id"]
    assert ("more", "1.2") in {(package.name, package.version) for package in image.metadata.packages}


def test_an_image_of_another_version_is_used_but_told(engine: docker.APIClient, python: str) -> None:
    name = f"kernelpool-test-old:{uuid.uuid4().hex[:8]}"
    build_from(engine, f"FROM {python}\nLABEL org.opencontainers.image.version=0.0.1\n", name)
    said: list[str] = []
    try:
        prepare(name, said.append)
    finally:
        engine.remove_image(name, force=True)

    assert said == [f"the image {name} was made for kernelpool 0.0.1, and this is {__version__}: build it again"]


def test_what_is_no_image_of_ours_is_refused(engine: docker.APIClient) -> None:
    with pytest.raises(PrepareFailed, match="cannot be used"):
        prepare(base_image(engine))


def test_an_image_without_the_runtime_is_refused(engine: docker.APIClient, python: str) -> None:
    name = f"kernelpool-test-other:{uuid.uuid4().hex[:8]}"
    build_from(engine, f"FROM {python}\nUSER 0\nRUN mv {PROGRAM}/kernels/python {PROGRAM}/kernels/ruby\n", name)
    try:
        with pytest.raises(PrepareFailed, match="is none of the python runtime"):
            prepare(name)
    finally:
        engine.remove_image(name, force=True)


def test_an_image_that_nobody_has_is_said_to_be_missing(engine: docker.APIClient) -> None:
    with pytest.raises(PrepareFailed, match="the image kernelpool-test-nowhere:1 cannot be"):
        prepare("kernelpool-test-nowhere:1")


def test_a_look_into_an_image_leaves_no_container(engine: docker.APIClient, python: str) -> None:
    prepare()

    until(lambda: engine.containers(all=True, filters={"label": LOOK}) == [])  # others may be looking at this moment


# --- the command


def test_the_list_says_which_images_are_used(images: Shell, python: str) -> None:
    found = {each["id"]: each for each in images.json("images", "list")}

    assert found[python]["current"] is True
    assert found[python]["image"] == "python"
    assert python.encode() in images("images", "list")


def test_building_again_what_is_built_takes_no_time_and_gives_the_same(images: Shell, python: str) -> None:
    def build() -> tuple[dict[str, str], bytes]:
        process = images.start("images", "build", "python", "--base", BASE, "--json")
        out, err = process.communicate(timeout=900)  # a run before this may have left the image and not what it is of
        assert process.returncode == 0, err
        [built] = json.loads(out)
        return built, err

    first, _ = build()
    again, said = build()

    assert again == first
    assert first["name"] == f"kernelpool-python:{__version__}"
    assert b"installing" not in said


def test_a_base_that_nobody_has_is_an_error_in_a_sentence(images: Shell) -> None:
    told = images("images", "build", "python", "--base", "kernelpool-test-nowhere:1", code=1).decode()

    assert "does not have what it is built from, kernelpool-test-nowhere:1" in told
    assert "--base" in told


def test_a_base_without_python_is_an_error_with_the_builders_last_lines(
    images: Shell, engine: docker.APIClient
) -> None:
    name = f"kernelpool-test-bare:{uuid.uuid4().hex[:8]}"
    build_from(engine, f"FROM {base_image(engine)}\nRUN rm /usr/bin/python3*\n", name)
    try:
        told = images("images", "build", "python", "--base", name, "--network", "none", code=1).decode()
    finally:
        engine.remove_image(name, force=True)

    assert "could not be built" in told
    assert "python3: not found" in told


def test_without_an_engine_the_command_says_so(tmp_path: Path) -> None:
    shell = Shell(tmp_path, DOCKER_HOST=f"unix://{tmp_path}/engine.sock")

    told = shell("images", "list", code=1).decode()

    assert "no Docker Engine answers" in told


def test_an_image_that_there_is_not_is_named_with_those_that_there_are(images: Shell) -> None:
    told = json.loads(images("images", "build", "ruby", "--json", code=1))

    assert told["error"]["message"].startswith("there is no image 'ruby', only deno, node, python")


def test_one_tag_is_for_one_image(images: Shell) -> None:
    assert b"--tag is for one image" in images("images", "build", "--tag", "x", code=2)


def test_a_build_that_is_interrupted_ends_soon_and_leaves_no_container(images: Shell, engine: docker.APIClient) -> None:
    def building() -> set[str]:
        return {each["Id"] for each in engine.containers() if "backends.tree.image" in each["Command"]}

    # A base of its own: the builder takes the newest of what it remembers, and this would be newer than what is whole.
    base = f"kernelpool-test-interrupted-base:{uuid.uuid4().hex[:8]}"
    build_from(engine, f"FROM {base_image(engine)}\nLABEL io.kernelpool.test={base}\n", base)
    before = building()
    arguments = ["images", "build", "python", "--fresh", "--base", base, "--network", "none"]
    process = images.start(*arguments, "--tag", "kernelpool-test-interrupted:1")
    try:
        until(lambda: building() - before, seconds=240)

        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)

        assert process.returncode == 130, (out, err)
        until(lambda: not building() - before)
        assert engine.images("kernelpool-test-interrupted:1") == []
    finally:
        engine.remove_image(base, force=True)
