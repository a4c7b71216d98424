"""What images are built from: our files and no others, the same from a checkout and a wheel, known by a digest."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from kernelpool import __version__
from kernelpool.backends.docker.build import Plan, Progress, Watch
from kernelpool.backends.docker.context import find_target, targets
from kernelpool.backends.tree.image import LAYERS
from kernelpool.backends.tree.packages import AGENT_REQUIREMENTS
from kernelpool.errors import InvalidRequest, PrepareFailed
from kernelpool.pool.settings import PoolSettings, fingerprint, sandbox_spec
from kernelpool.runtimes import load_runtimes

ROOT = Path(__file__).parents[2]
SOURCES = ("kernelpool", "kernels", "Dockerfile", "pyproject.toml", "README.md", "LICENSE", "constraints.txt")


def files_of(name: str) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(find_target(name).context())) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def copied(stages: set[str], runtime: str) -> Iterator[str]:
    """The sources of the Dockerfile's COPY lines in these stages, as patterns."""
    stage = ""
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if match := re.match(r"FROM \S+ AS (\S+)", line):
            stage = match[1]
        elif stage in stages and line.startswith("COPY ") and "--from" not in line:
            yield from (word.replace("${RUNTIME}", runtime) for word in line.split()[1:-1])


STAGES = {
    "net": {"holder", "net"},
    "python": {"holder", "net", "packages", "program", "runtime"},
    "gateway": {"holder", "net", "gateway-packages", "gateway"},
}


@pytest.mark.parametrize("name", STAGES)
def test_what_is_sent_is_what_is_copied(name: str) -> None:
    patterns = list(copied(STAGES[name], "python"))
    assert patterns
    sent = files_of(name)

    unused = [file for file in sent if not any(fnmatch(file, p) or file.startswith(f"{p}/") for p in patterns)]
    missing = [p for p in patterns if "*" not in p and not any(f == p or f.startswith(f"{p}/") for f in sent)]

    assert unused == ["Dockerfile"] * ("Dockerfile" in unused)
    assert missing == []


def test_nothing_is_sent_but_sources(tmp_path: Path) -> None:
    for name, content in files_of("gateway").items():
        assert name.partition("/")[0] in SOURCES
        assert "__pycache__" not in name
        assert content == (ROOT / name).read_bytes()


def test_every_entry_of_the_tar_is_the_same_whoever_makes_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(find_target("python").context())) as tar:
        entries = tar.getmembers()

    assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in entries} == {(0, 0, 0, "", 0o644)}
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)


def test_what_is_sent_runs_with_nothing_but_the_standard_library(tmp_path: Path) -> None:
    for name, content in files_of("python").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import kernelpool.backends.tree.image as i; print(i.SAID)"
    )

    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)

    assert done.stdout == "kernelpool: \n", done.stderr


def test_an_image_that_there_is_not_is_named_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match=r"no image 'ruby', only .*python.*net, gateway"):
        find_target("ruby")


def digests(root: Path) -> dict[str, str]:
    """As a kernelpool in `root` sees them."""
    code = (
        "from kernelpool.backends.docker.context import targets\nfor t in targets().values(): print(t.name, t.digest())"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env={"PYTHONPATH": str(root)}, cwd=root, capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_a_digest_changes_with_what_the_image_is_made_of_and_with_nothing_else(checkout: Path) -> None:
    before = digests(checkout)
    assert before == {name: target.digest() for name, target in targets().items()}

    def changed_by(file: str) -> set[str]:
        path = checkout / file
        old = path.read_bytes()
        path.write_bytes(old + b"\n")
        after = digests(checkout)
        path.write_bytes(old)
        return {name for name in before if after[name] != before[name]}

    assert changed_by("kernelpool/server.py") == {"gateway"}
    assert changed_by("kernelpool/agent/app.py") == {*load_runtimes(), "gateway"}
    assert changed_by("kernels/python/constraints.txt") == {"python", "gateway"}
    assert changed_by("Dockerfile") == {*load_runtimes(), "net", "gateway"}


@pytest.mark.slow
def test_a_wheel_builds_the_same_images_as_a_checkout(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(checkout)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")

    assert digests(folder / "installed") == digests(checkout)


@pytest.mark.parametrize("runtime", load_runtimes().values(), ids=lambda runtime: runtime.name)
def test_what_a_runtime_asks_for_is_pinned_within_its_bounds(runtime: Any) -> None:
    lines = [line for line in (runtime.folder / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    pins = {
        re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in (line.partition("==") for line in lines)
    }
    assert all(pins.values())

    for wanted in map(Requirement, [*AGENT_REQUIREMENTS, *runtime.requirements]):
        assert pins[re.sub(r"[-_.]+", "-", wanted.name).lower()] in wanted.specifier, wanted


def test_the_gateways_own_requirements_are_pinned_within_their_bounds() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    pins = {
        re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in (line.partition("==") for line in lines)
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    extras = project["optional-dependencies"]
    for wanted in map(Requirement, [*project["dependencies"], *extras["mcp"], *extras["otel"]]):
        assert pins[re.sub(r"[-_.]+", "-", wanted.name).lower()] in wanted.specifier, wanted


def test_every_layer_that_the_dockerfile_asks_for_can_be_made() -> None:
    asked = re.findall(r"backends\.tree\.image (\w+)", (ROOT / "Dockerfile").read_text())

    assert sorted(asked) == sorted(LAYERS)


def test_a_pool_with_another_image_has_other_sandboxes() -> None:
    runtime = load_runtimes()["python"]
    ours, own = PoolSettings(backend="docker"), PoolSettings(backend="docker", image="mine:1")

    assert fingerprint(ours, runtime) != fingerprint(own, runtime)
    assert sandbox_spec(own, runtime).runtime.image == "mine:1"


# --- what the builder says


def follow(*lines: dict[str, Any], stopped: bool = False) -> tuple[str, list[Progress]]:
    heard: list[Progress] = []
    stop = threading.Event()
    if stopped:
        stop.set()
    plan = Plan(find_target("python"), base="nothing:1")
    return Watch(plan, heard.append, stop).follow(iter(lines)), heard


def test_steps_and_what_we_say_ourselves_are_progress_and_the_rest_is_not() -> None:
    id, heard = follow(
        {"stream": "Step 2/9 : RUN something"},
        {"stream": "\n"},
        {"stream": " ---> Running in 0123\n"},
        {"stream": "kernelpool: installing 3 packages\nkernelpool: compiling\n"},
        {"aux": {"ID": "sha256:1"}},
    )

    assert id == "sha256:1"
    assert heard == [Progress(2, 9), Progress(2, 9, "installing 3 packages"), Progress(2, 9, "compiling")]


def test_a_step_that_fails_is_told_with_its_last_lines_and_steers_no_terminal() -> None:
    noise = [{"stream": f"line {number}\n"} for number in range(100)]

    with pytest.raises(PrepareFailed) as caught:
        follow({"stream": "Step 2/9 : RUN pip"}, *noise, {"stream": "\x1b[91mno\x07 disk\x1b[0m"}, {"error": "code: 1"})

    text = caught.value.message
    assert text.startswith(f"the image kernelpool-python:{__version__} could not be built: code: 1\n")
    assert text.endswith("line 99\nno disk")
    assert "line 1\n" not in text


def test_a_base_that_there_is_not_is_told_in_a_sentence() -> None:
    with pytest.raises(PrepareFailed, match=r"nothing:1, and cannot fetch it \(no such host\).*--base"):
        follow({"stream": "Step 5/9 : FROM ${BASE} AS net"}, {"error": "no such host"})


def test_a_build_that_ends_without_a_word_is_no_image() -> None:
    with pytest.raises(PrepareFailed, match="does not say why"):
        follow({"stream": "Step 1/1 : FROM x"})


def test_a_build_that_was_given_up_stops_at_the_builders_next_word() -> None:
    with pytest.raises(PrepareFailed, match="given up"):
        follow({"stream": "Step 1/2 : FROM x"}, {"aux": {"ID": "sha256:1"}}, stopped=True)
