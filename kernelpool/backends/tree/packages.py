"""Fills /opt/venv of a tree: pip installs, everything is compiled, matplotlib's list of fonts is made ahead."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernelpool import __version__
from kernelpool.backends.base import Package, RuntimeMetadata, Say
from kernelpool.backends.tree.hostfiles import inside
from kernelpool.backends.tree.interpreter import PREFIX, VERSION, base_executable
from kernelpool.backends.tree.npm import NODE_MODULES, npm_packages
from kernelpool.backends.tree.steps import in_thread, run
from kernelpool.errors import PrepareFailed
from kernelpool.runtimes import Runtime

VENV = "/opt/venv"
SITE = f"{VENV}/lib/{VERSION}/site-packages"

AGENT_REQUIREMENTS = ("tornado>=6.5.5", "pyzmq>=26")
"""What kernelpool.agent imports."""

MATPLOTLIB = "/opt/matplotlib"
"""Holds the list of fonts. matplotlib wants a directory that it may write to, so MPLCONFIGDIR cannot name this one."""

_PIP_OPTIONS = (
    *("--no-compile", "--no-input", "--no-user", "--no-warn-script-location", "--prefer-binary"),
    *("--disable-pip-version-check", "--progress-bar", "off"),
)

# They send packages elsewhere, or decide for another environment.
_PIP_ELSEWHERE = frozenset({"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_DRY_RUN"})

# Written into the environment of sessions: runs at the start of each interpreter there, so it must be quick and silent.
_FONTS_HOOK = f'''\
"""Gives a fresh MPLCONFIGDIR the list of fonts that was made with this tree: a link, before matplotlib looks."""

import os


def link_fonts():
    folder = os.environ.get("MPLCONFIGDIR")
    if folder and not os.path.isdir(folder):
        try:
            os.makedirs(folder)
            for name in os.listdir("{MATPLOTLIB}"):
                os.symlink("{MATPLOTLIB}/" + name, os.path.join(folder, name))
        except OSError:
            pass


link_fonts()
'''

_MAKE_FONTS = """\
import sys
from pathlib import Path
from matplotlib import font_manager
find = font_manager.findSystemFonts
# Those that matplotlib brings along are asked for by their directory; the host's are not in the tree.
# In order, so that two trees have the same list.
find_ours = lambda paths=None, fontext="ttf": sorted(find(paths, fontext)) if paths else []
font_manager.findSystemFonts = find_ours
manager = font_manager.FontManager()
font_manager.json_dump(manager, Path(sys.argv[1], f"fontlist-v{manager.__version__}.json"))
"""


async def install(
    root: Path,
    lines: Sequence[str],
    say: Say,
    *,
    interpreter: Path = Path(PREFIX, "bin", VERSION),
    constraints: Path | None = None,
) -> None:
    """Runs pip in an environment inside the tree that borrows the host's interpreter meanwhile; `compile_all` follows.
    What a source distribution executes here, it executes as the gateway's user: `lines` are the operator's.

    `interpreter` is where the tree will have one; `constraints` a file of exact versions."""
    venv, work = inside(root, VENV), root.parent
    await in_thread(_make_venv, venv, work, lines)
    say(f"installing {len(lines)} packages and what they need (this takes a minute or two the first time)")
    pip = await in_thread(pip_command)
    argv = [*pip, "--python", str(venv / "bin/python"), "install", *_PIP_OPTIONS, "-r", "requirements.txt"]
    argv += ["-c", str(constraints)] if constraints is not None else []
    await run(argv, "pip install", cwd=work, env=pip_environment(work), heard=lambda line: _tell(line, say))
    if await in_thread(inside(root, f"{SITE}/matplotlib").is_dir):
        say("listing the fonts")
        await _make_fonts(root, venv, work)
    await in_thread(_settle_venv, venv, interpreter)


def pip_command() -> list[str]:
    """The gateway's own pip, or the one that every Python has in its cupboard."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]
    spec = importlib.util.find_spec("ensurepip")
    # A distribution keeps its wheels elsewhere, and tells Python so.
    cupboards = [Path(folder) for folder in (sysconfig.get_config_var("WHEEL_PKG_DIR"),) if folder]
    if spec is not None and spec.origin is not None:
        cupboards.append(Path(spec.origin).parent / "_bundled")
    for wheel in sorted(wheel for cupboard in cupboards for wheel in cupboard.glob("pip-*.whl")):
        return [sys.executable, f"{wheel}/pip"]
    raise PrepareFailed(
        "there is no pip: install it into the gateway's environment (python3-pip, or `uv pip install pip`)"
    )


def pip_environment(work: Path) -> dict[str, str]:
    """The user's, where proxies and indexes are set, without what changes the meaning of Python or of our options."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    # pip looks for this file in the environment that it installs into, which is no longer the gateway's.
    ours.setdefault("PIP_CONFIG_FILE", str(Path(sys.prefix, "pip.conf")))
    return {name: value for name, value in ours.items() if name not in _PIP_ELSEWHERE} | {"TMPDIR": str(work / "tmp")}


def _make_venv(venv: Path, work: Path, lines: Sequence[str]) -> None:
    (work / "tmp").mkdir()
    (work / "requirements.txt").write_text("".join(f"{line}\n" for line in lines))
    (venv / "bin").mkdir(parents=True)
    (venv / f"lib/{VERSION}/site-packages").mkdir(parents=True)
    python = base_executable()
    (venv / "bin/python").symlink_to(python)
    _write_config(venv, python.parent)


def _write_config(venv: Path, home: Path) -> None:
    version = platform.python_version()
    (venv / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\nversion = {version}\n")


def _settle_venv(venv: Path, interpreter: Path) -> None:
    """From the place where it was filled to the place where it will be seen."""
    _write_config(venv, interpreter.parent)
    for name in ("python", "python3", VERSION):
        (venv / "bin" / name).unlink(missing_ok=True)
        (venv / "bin" / name).symlink_to(interpreter if name == "python" else "python")
    for script in (venv / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(str(venv).encode(), VENV.encode()))


def _tell(line: str, say: Say) -> None:
    head, _, names = line.partition(": ")
    if head == "Installing collected packages":
        say(f"unpacking {names.count(',') + 1} packages")


async def _make_fonts(root: Path, venv: Path, work: Path) -> None:
    target = inside(root, MATPLOTLIB)
    await in_thread(target.mkdir, parents=True)
    argv = [str(venv / "bin/python"), "-I", "-B", "-c", _MAKE_FONTS, str(target)]
    env = {"MPLCONFIGDIR": str(work / "tmp/matplotlib"), "HOME": str(work / "tmp"), "PATH": "/usr/bin:/bin"}
    await run(argv, "listing matplotlib's fonts", cwd=work, env=env)
    site = inside(root, SITE)
    await in_thread((site / "kernelpool_fonts.py").write_text, _FONTS_HOOK)
    await in_thread((site / "kernelpool_fonts.pth").write_text, "import kernelpool_fonts\n")


async def compile_all(root: Path, seen_as: str, folders: Sequence[Path]) -> None:
    """Writes .pyc files that are never compared with their source, which a read-only tree cannot change. `root` will be
    seen as `seen_as` in the sandbox, also by tracebacks. Test suites stay as they are: nobody imports them."""
    python = str(await in_thread(base_executable))
    argv = [python, "-I", "-m", "compileall", "-q", "-f", "-j", str(min(2, os.cpu_count() or 1))]
    argv += ["--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", seen_as, "-x", "/tests/"]
    # Some packages ship files for other Pythons; that these do not compile is no failure of ours.
    await run([*argv, *map(str, folders)], "compileall", cwd=root.parent, env={}, check=False)


def describe(runtime: Runtime, root: Path) -> RuntimeMetadata:
    """What the tree holds, read from the tree."""
    found = importlib.metadata.distributions(path=[str(inside(root, SITE))])
    versions = {dist.metadata["Name"]: dist.version for dist in found}
    contents = Contents(platform.python_version(), versions, npm_packages(inside(root, NODE_MODULES)))
    return metadata_of(runtime, contents, time.time())


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a tree or an image, by name and version."""

    python: str
    packages: Mapping[str, str]
    """In /opt/venv."""
    npm: Mapping[str, str]


def metadata_of(runtime: Runtime, contents: Contents, created_at: float) -> RuntimeMetadata:
    """In the words of the runtime's language: Python's packages are of no interest where they only serve its kernel."""
    is_python = runtime.language.lower() == "python"
    shown = contents.packages if is_python else contents.npm
    return RuntimeMetadata(
        language=runtime.name,
        language_version=contents.python if is_python else contents.packages.get(runtime.version_of, ""),
        packages=tuple(Package(name, shown[name]) for name in sorted(shown, key=str.lower)),
        created_at=created_at,
        kernel_name=runtime.kernel or f"kernelpool-{runtime.name}",
        kernel_version=contents.packages.get(runtime.kernel, __version__),
    )
