"""Test suites that others wrote for their own servers and clients, unmodified, against a gateway.

Each is of one exact version, so how many of its tests pass is known: one that skips everything is no success. What does
not fit a gateway stands here with the reason. Tests of objects inside of a server's process leave themselves out.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from kernelpool.auth.keys import KeyStore
from tests.e2e.gateways import STATE, Gateway
from tests.extra import extra
from tests.pypi import pypi_folder

CACHE = STATE.parent / f"{STATE.name}-suites"
PLUGINS = Path(__file__).parent / "suites"
SECONDS = 540.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JUPYTER_SERVER: Final = {
    "test_resolve_path*": "an API of its own, over files",
    "test_default_kernels": "its own Content-Security-Policy",
    "test_main_kernel_handler": "its own Content-Security-Policy",
    "test_kernel_handler": "its own words for a kernel that is not there",
    "test_post_kernel_with_client_supplied_id": "a kernel's id is its session's guid, which nobody else chooses",
    "test_create_with_client_supplied_kernel_id": "likewise",
    "test_get_kernelspecs": "a kernelspec that it installs; ours are pools",
    "test_get_kernel_resource_file": "likewise",
    "test_get_spec": "its own description of its API; ours is /openapi.json",
    "test_get_status": "a Content-Type that names no charset",
}
KERNEL_CLIENT: Final = {
    "test_set_variable_and_get_variable": "needs a package of its makers in the kernel",
    "test_set_variables_on_execute": "likewise",
}
KERNEL_GATEWAY: Final = {
    "test_no_discovery": "its policy that nobody may list kernels, and ours is that everybody may list his own",
    "test_json_errors": "likewise, and its own words",
    "test_auth_token": "a token that it sets itself",
    "test_check_origin": "changes settings in its process",
    "test_options_without_auth_token": "OPTIONS without an origin, which no browser sends",
    "test_kernel_env": "variables of a kernel, of which ours takes none from a client",
    "test_get_swagger_*": "its own description of its API; ours is /openapi.json",
    "TestCustomDefaultKernel::*": "its own options",
    "TestForceKernel::*": "its own options",
    "TestBaseURL::*": "its own options",
    "TestRelativeBaseURL::*": "its own options",
    "TestSeedURI::*": "its own options",
    "TestRemoteSeedURI::*": "its own options",
    "TestBadSeedURI::*": "its own options",
    "TestKernelLanguageSupport::*": "its own options",
}


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody who has no kernels but those of a suite: suites look whether there is none."""

    gateway: Gateway
    key: str

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.gateway.port}"


@pytest.fixture
def tenant(gateway: Gateway) -> Iterator[Tenant]:
    store = KeyStore(gateway.state)
    record, key = store.create(f"suites-{os.getpid()}", tenant="suites", seconds=3600)
    gateway.wait_ready()
    yield Tenant(gateway, key)
    store.revoke(record.id)


def run(
    root: Path, tests: Iterable[str], tenant: Tenant, folder: Path, left_out: Iterable[str] = (), **environment: str
) -> dict[str, int]:
    """How many tests passed, failed and so on, as pytest's last line says."""
    # Neither the suite's conftest, which starts its server, nor its settings, nor plugins that happen to be installed.
    command = [sys.executable, "-m", "pytest", "-q", "-rsfE", "--noconftest", "-c", os.devnull, f"--rootdir={root}"]
    for plugin in ("served_elsewhere", "pytest_asyncio.plugin", "pytest_timeout", "no:cacheprovider", "no:warnings"):
        command += ["-p", plugin]
    command += ["-o", "asyncio_mode=auto", f"--basetemp={folder / 'suite'}", *tests]
    done = subprocess.run(
        command,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "JUPYTER_PLATFORM_DIRS": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (PLUGINS, root))),
            "SUITE_URL": f"http://{tenant.address}",
            "SUITE_TOKEN": tenant.key,
            "SUITE_LEFT_OUT": " ".join(left_out),
            **environment,
        },
        cwd=root,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(done.stdout[-30_000:], done.stderr[-5_000:])
    [*_, last] = done.stdout.splitlines() or [""]
    return {name: int(count) for count, name in re.findall(r"(\d+) ([a-z]+)(?:,| in )", last)}


@extra
def test_jupyter_servers_suite(tenant: Tenant, tmp_path: Path) -> None:
    root = pypi_folder(CACHE, "jupyter_server", "2.21.1")
    tests = [f"tests/services/{name}" for name in ("kernels", "sessions", "kernelspecs", "api")]
    # Of how long kernels live, by its own options; cannot be collected without its plugin.
    tests.append("--ignore=tests/services/kernels/test_cull.py")

    counts = run(root, tests, tenant, tmp_path, JUPYTER_SERVER)

    assert counts == {"passed": 31, "skipped": 17, "deselected": 61}


@extra
def test_jupyter_kernel_clients_suite(tenant: Tenant, tmp_path: Path) -> None:
    root = pypi_folder(CACHE, "jupyter_kernel_client", "1.0.2", sdist=False)
    session = tenant.gateway.session(f"suites-{os.getpid()}")
    names = session.value("import os, platform\nos.environ.get('USER', 'John Smith'), platform.node()")
    session.delete()
    user, node = ast.literal_eval(names)

    counts = run(root, ["jupyter_kernel_client/tests"], tenant, tmp_path, KERNEL_CLIENT, USER=user, SUITE_NODE=node)

    assert counts == {"passed": 18, "deselected": 24}


@extra
def test_enterprise_gateways_suite(tenant: Tenant, tmp_path: Path) -> None:
    """Its client sends no token, so it stands in the URL."""
    root = pypi_folder(CACHE, "jupyter_enterprise_gateway", "3.3.0")
    tests = ["enterprise_gateway/itests/test_python_kernel.py::TestPythonKernelLocal"]
    host = f"{tenant.address}/k/{tenant.key}"

    counts = run(root, tests, tenant, tmp_path, GATEWAY_HOST=host, ITEST_HOSTNAME_PREFIX=".")

    assert counts == {"passed": 5}


@extra
def test_kernel_gateways_suite(tenant: Tenant, tmp_path: Path) -> None:
    root = pypi_folder(CACHE, "jupyter_kernel_gateway", "3.0.1")

    counts = run(root, ["tests/test_jupyter_websocket.py"], tenant, tmp_path, KERNEL_GATEWAY)

    assert counts == {"passed": 7, "skipped": 6, "deselected": 20}
