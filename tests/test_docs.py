"""Documents do not drift: what is generated is current, what is named exists, what is shown works."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from kernelpool.config import Settings, merge

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.md")])


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_page_is_current(generate: ModuleType) -> None:
    assert generate.settings_page() == text_of("docs/settings.md"), "run: python docs/generate.py"


def test_the_errors_page_is_current(generate: ModuleType) -> None:
    assert generate.errors_page() == text_of("docs/errors.md"), "run: python docs/generate.py"


def test_the_metrics_page_is_current(generate: ModuleType) -> None:
    assert generate.metrics_page() == text_of("docs/metrics.md"), "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_tests_that_the_architecture_names_exist() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_[a-z0-9_]+)`", text_of("ARCHITECTURE.md") + text_of("SECURITY.md"))

    assert len(named) > 20
    assert not [name for name in named if f"def {name}(" not in tests and not list(ROOT.rglob(f"tests/**/{name}.py"))]


def test_files_that_the_architecture_names_exist() -> None:
    for name in re.findall(
        r"`((?:kernelpool|kernels|notebooks|tests|benchmarks)/[\w./]+)`", text_of("ARCHITECTURE.md")
    ):
        assert (ROOT / name).exists(), name


def test_the_configurations_that_the_readme_shows_are_valid() -> None:
    first, *more = re.findall(r"```toml\n(.*?)```", text_of("README.md"), re.DOTALL)

    settings = Settings.model_validate(merge({"state_dir": "/tmp/x"}, tomllib.loads(first)))

    assert settings.pools["python"].ready == 4
    for example in more:
        Settings.model_validate(merge({"state_dir": "/tmp/x"}, tomllib.loads(example)))


def test_make_targets_that_the_readme_names_exist() -> None:
    for target in set(re.findall(r"make (\w+)", text_of("README.md"))) - {"for"}:
        assert re.search(rf"^{target}:", text_of("Makefile"), re.MULTILINE), target


def test_the_python_extra_is_the_list_that_sessions_see() -> None:
    extra = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]["python"]
    lines = [line.partition("#")[0].strip() for line in text_of("kernels/python/requirements.txt").splitlines()]

    assert extra == [line for line in lines if line]


def test_the_version_is_said_once() -> None:
    from kernelpool import __version__

    assert tomllib.loads(text_of("pyproject.toml"))["project"]["version"] == __version__
