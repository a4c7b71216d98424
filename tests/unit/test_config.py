"""Settings: file, environment and flags, in rising precedence."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from kernelpool.cli import main
from kernelpool.config import (
    CONFIG_VARIABLE,
    FILE_NAME,
    Settings,
    default_state_dir,
    from_environment,
    merge,
    sentence,
)
from kernelpool.errors import InvalidRequest
from kernelpool.telemetry.logs import JsonFormatter


def load(tmp_path: Path, text: str = "", environment: dict[str, str] | None = None, **flags: Any) -> Settings:
    file = tmp_path / "kernelpool.toml"
    file.write_text(text)
    return Settings.load(file, environment or {}, flags)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prot": 1}, "settings: prot: there is no such setting"),
        ({"tls_key": "a"}, "settings: tls_certificate and tls_key go together: only one of them is set"),
        ({"pools": {"a": {"ready": 40}}}, "settings: pools.a: ready 40 is more than max_sessions 10"),
    ],
)
def test_what_is_wrong_is_said_in_our_words(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Settings.load(None, {}, values)

    assert caught.value.message == said


def test_without_a_word_there_is_one_python_pool_on_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    settings = Settings.load(None, {}, {})

    assert settings.host == "127.0.0.1"
    assert list(settings.pools) == ["python"]
    assert settings.pools["python"].name == "python"
    assert not settings.allow_insecure


def test_the_engine_is_where_dockers_own_variables_say_unless_we_are_told_otherwise(tmp_path: Path) -> None:
    docker = {"DOCKER_HOST": "tcp://engine:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/certs"}

    assert load(tmp_path).docker.host == "unix:///var/run/docker.sock"
    theirs = load(tmp_path, environment=docker).docker
    assert (theirs.host, theirs.tls_verify, theirs.cert_path) == ("tcp://engine:2376", True, Path("/certs"))
    ours = load(tmp_path, environment=docker | {"KERNELPOOL_DOCKER__HOST": "tcp://ours:2375"}).docker
    assert (ours.host, ours.tls_verify, ours.cert_path) == ("tcp://ours:2375", False, None)
    assert load(tmp_path, "docker = { host = 'unix:///file.sock' }", docker).docker.host == "unix:///file.sock"


def test_flags_win_over_environment_and_environment_over_file(tmp_path: Path) -> None:
    text = "host = 'file'\nport = 1\ndrain_seconds = 1\n"
    environment = {"KERNELPOOL_PORT": "2", "KERNELPOOL_DRAIN_SECONDS": "2"}

    settings = load(tmp_path, text, environment, drain_seconds=3, host=None)

    assert (settings.host, settings.port, settings.drain_seconds) == ("file", 2, 3)


def test_a_pools_settings_meet_from_file_and_environment(tmp_path: Path) -> None:
    text = "[pools.python]\nready = 1\nlimits = { memory = '2Gi' }\n[pools.other]\n"
    environment = {"KERNELPOOL_POOLS__PYTHON__MAX_SESSIONS": "7", "KERNELPOOL_POOLS__PYTHON__LIMITS__PIDS": "64"}

    pools = load(tmp_path, text, environment).pools

    assert (pools["python"].ready, pools["python"].max_sessions) == (1, 7)
    assert (pools["python"].limits.memory, pools["python"].limits.pids) == (2 << 30, 64)
    assert pools["other"].name == "other"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "prot"),
        ("port = 'x'", "port"),
        ("port = 70000", "port"),
        ("token = 'short'", "token"),
        ("[pools.python]\nredy = 1", r"pools\.python\.redy"),
        ("[pools.'bad name']", r"pools\.bad name\.name"),
        ("pools = {}", "pools"),
        ("port = ", "kernelpool.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        load(tmp_path, text)


def test_a_wrong_token_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(tmp_path, "token = 'secret'")

    assert "secret" not in str(caught.value)
    assert "secret-secret-secret" not in repr(load(tmp_path, "token = 'secret-secret-secret'"))


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"missing\.toml"):
        Settings.load(tmp_path / "missing.toml", {}, {})


def test_the_environment_makes_tables() -> None:
    environment = {
        "KERNELPOOL_A__B": "1",
        "KERNELPOOL_C": "2",
        "KERNELPOOL_EMPTY": "",
        "KERNELPOOL_CONFIG": "f",
        "X": "3",
    }

    assert from_environment(environment) == {"a": {"b": "1"}, "c": "2"}


def test_what_names_a_gateway_for_the_command_line_is_no_setting() -> None:
    assert from_environment({"KERNELPOOL_URL": "http://x", "KERNELPOOL_PROFILE": "a", "KERNELPOOL_TOKEN": "t"}) == {
        "token": "t"
    }


def test_contradictions_in_the_environment_are_said() -> None:
    with pytest.raises(InvalidRequest, match="KERNELPOOL_A__B"):
        from_environment({"KERNELPOOL_A": "1", "KERNELPOOL_A__B": "2"})


def test_tables_merge_and_values_are_replaced() -> None:
    assert merge({"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"c": [2]}, "d": {"e": 1}}) == {
        "a": {"b": 1, "c": [2]},
        "d": {"e": 1},
    }


def test_every_setting_has_a_sentence() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_the_state_directory_follows_xdg_for_ordinary_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    assert default_state_dir({"XDG_STATE_HOME": "/x"}) == Path("/x/kernelpool")
    assert default_state_dir({}).name == "kernelpool"


def test_whatever_is_logged_is_one_line_of_json() -> None:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    log = logging.Logger("test")
    log.addHandler(handler)

    log.info("event", extra={"name_of_file": "a\nb\u2028\x1b[31m", "level": "forged"})
    try:
        raise ValueError("line\nline")
    except ValueError:
        log.exception("failed")

    first, second = stream.getvalue().splitlines()
    assert first.isascii()
    assert json.loads(first)["name_of_file"] == "a\nb\u2028\x1b[31m"
    assert json.loads(first)["level"] == "info"
    assert "ValueError: line" in json.loads(second)["exception"]


@pytest.mark.parametrize(
    "command", [["--version"], ["--help"], ["serve", "--help"], ["doctor", "--help"], ["cleanup", "--help"]]
)
def test_the_command_line_explains_itself(command: list[str]) -> None:
    result = CliRunner().invoke(main, command)

    assert result.exit_code == 0
    assert "kernelpool" in result.output or "Usage" in result.output


def test_a_flag_says_what_its_setting_says() -> None:
    flags = {flag.name: flag for flag in main.params if isinstance(flag, click.Option)}

    assert (flags["state_dir"].help, flags["log_level"].help) == (sentence("state_dir"), sentence("log_level"))
    assert flags["config"].envvar == CONFIG_VARIABLE
    assert FILE_NAME in (flags["config"].help or "")


def test_a_command_that_talks_to_a_gateway_loads_none() -> None:
    command = "import sys; from kernelpool.cli import main; main(['exec', '--help'], standalone_mode=False)"
    code = f"{command}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert "kernelpool.client.sync" in loaded
    assert not {"kernelpool.server", "kernelpool.config", "aiohttp", "tornado", "docker"} & set(loaded)


def test_the_command_line_says_which_setting_is_wrong_and_no_stack(tmp_path: Path) -> None:
    file = tmp_path / "k.toml"
    file.write_text("[pools.python]\nredy = 1\n")

    result = CliRunner().invoke(main, ["--config", str(file), "serve"])

    assert result.exit_code == 1
    assert "pools.python.redy" in result.output
    assert "Traceback" not in result.output


def test_what_kubernetes_tells_of_a_service_of_our_name_is_no_setting() -> None:
    links = {
        "KERNELPOOL_PORT": "tcp://10.0.0.1:8080",
        "KERNELPOOL_PORT_8080_TCP_ADDR": "10.0.0.1",
        "KERNELPOOL_SERVICE_HOST": "10.0.0.1",
    }

    assert from_environment(links) == {}
