"""Custom containers in Azure's words: `customContainerTemplate` and `secrets` of a pool, read and shown.

As everywhere on this surface, what has no counterpart here is refused by its name. In a change, an array that is given
replaces the one that was there, and so does a container.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelpool.errors import InvalidRequest
from kernelpool.pool.container import ContainerSettings, ProbeSettings, SecretRef
from kernelpool.pool.settings import LimitSettings, PoolSettings

_TEMPLATE = "properties.customContainerTemplate"
_PROBES = {"startup": "startup", "liveness": "liveness"}
_TIMES = {
    "failureThreshold": "failure_threshold",
    "initialDelaySeconds": "initial_delay_seconds",
    "periodSeconds": "period_seconds",
    "successThreshold": "success_threshold",
    "timeoutSeconds": "timeout_seconds",
}
_LIFECYCLES = {"timed": "timed", "oncontainerexit": "on_container_exit"}


def read_template(value: Any) -> dict[str, Any]:
    """Settings of ours; None where there is none now, whatever there was before."""
    template = _object(value, _TEMPLATE, {"containers", "registryCredentials", "ingress"})
    values: dict[str, Any] = {}
    container: dict[str, Any] = {}
    if template.get("ingress") is not None:
        container |= _renamed(template["ingress"], {"targetPort": "target_port"}, f"{_TEMPLATE}.ingress")
    if template.get("registryCredentials") is not None:
        container["registry"] = _registry(template["registryCredentials"])
    if template.get("containers") is not None:
        [one] = _array(template["containers"], f"{_TEMPLATE}.containers", exactly=1)
        values, own = _container(one)
        container |= own
    return {**values, "container": container}


def read_secrets(value: Any) -> dict[str, Any]:
    path = "properties.secrets"
    secrets: dict[str, Any] = {}
    for each in _array(value, path):
        secret = _object(each, path, {"name", "value"})
        if not isinstance(secret.get("name"), str) or secret.get("value") is None:
            raise InvalidRequest(f"{path}: each secret needs a name and a value; values are never shown, so never kept")
        secrets[secret["name"]] = secret["value"]
    return {"container": {"secrets": secrets}}


def read_lifecycle(kind: str, path: str) -> dict[str, Any]:
    """Of a lifecycleType other than none at all."""
    lifecycle = _LIFECYCLES.get(kind.lower())
    if lifecycle is None:
        raise InvalidRequest(f"{path}: the lifecycle types are Timed and OnContainerExit, not {kind[:40]!r}")
    return {"container": {"lifecycle": lifecycle}}


def replacing(changes: Mapping[str, Any], pool: PoolSettings) -> dict[str, Any]:
    """Changes that name what goes: entries of tables that stood in an array, and are in the new one no more."""
    container = changes.get("container")
    if pool.container is None or not container:
        return dict(changes)
    gone = {
        name: dict.fromkeys(getattr(pool.container, name).keys() - container[name].keys())
        for name in ("env", "secrets")
        if container.get(name) is not None
    }
    tables = {name: {**container[name], **removed} for name, removed in gone.items()}
    return {**changes, "container": {**container, **tables}}


def shown_template(container: ContainerSettings, limits: LimitSettings, name: str) -> dict[str, Any]:
    """Values of secrets are not in there, and never will be."""
    registry = container.registry
    return {
        "containers": [
            {
                "name": name,
                "image": container.image,
                "command": list(container.command),
                "args": list(container.args),
                "env": [_shown_variable(*each) for each in container.env.items()],
                "resources": {"cpu": limits.cpus, "memory": _shown_size(limits.memory)},
                "probes": [
                    _shown_probe(kind, probe)
                    for kind, probe in (("Startup", container.probes.startup), ("Liveness", container.probes.liveness))
                    if probe is not None
                ],
            }
        ],
        "ingress": {"targetPort": container.target_port},
        "registryCredentials": registry
        and {
            "server": registry.server,
            "username": registry.username,
            "passwordSecretRef": registry.password_secret_ref,
        },
    }


def shown_lifecycle(pool: PoolSettings) -> dict[str, Any]:
    if pool.container is not None and pool.container.lifecycle == "on_container_exit":
        return {"lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": pool.max_alive}
    return {"lifecycleType": "Timed", "cooldownPeriodInSeconds": pool.cooldown}


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: without_nulls(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None
    }


# --- reading


def _container(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the pool, and of its container."""
    path = f"{_TEMPLATE}.containers[0]"
    given = _object(value, path, {"name", "image", "command", "args", "env", "resources", "probes"})
    container: dict[str, Any] = {name: given.get(name) for name in ("image", "command", "args")}
    container["env"] = dict(_variable(each, f"{path}.env") for each in _array(given.get("env") or [], f"{path}.env"))
    container["probes"] = {"startup": None, "liveness": None}
    for each in _array(given.get("probes") or [], f"{path}.probes"):
        kind, probe = _probe(each, f"{path}.probes")
        container["probes"][kind] = probe
    if given.get("resources") is None:
        return {}, container
    limits = _renamed(given["resources"], {"cpu": "cpus", "memory": "memory"}, f"{path}.resources")
    return {"limits": limits}, container


def _variable(value: Any, path: str) -> tuple[str, Any]:
    variable = _object(value, path, {"name", "value", "secretRef"})
    if not isinstance(variable.get("name"), str):
        raise InvalidRequest(f"{path}: each variable needs a name")
    if (reference := variable.get("secretRef")) is not None:
        return variable["name"], {"secret_ref": reference}
    return variable["name"], variable.get("value") or ""


def _probe(value: Any, path: str) -> tuple[str, dict[str, Any]]:
    known = {"type", "httpGet", "tcpSocket", "terminationGracePeriodSeconds", *_TIMES}
    given = _object(value, path, known)
    kind = _PROBES.get(str(given.get("type")).lower())
    if kind is None:
        raise InvalidRequest(f"{path}: the types are Startup and Liveness, not {str(given.get('type'))[:40]!r}")
    if given.get("terminationGracePeriodSeconds"):
        raise InvalidRequest(f"{path}.terminationGracePeriodSeconds: what is not well is ended at once here")
    probe = {ours: given[name] for name, ours in _TIMES.items() if given.get(name) is not None}
    if given.get("httpGet") is not None:
        probe["http_get"] = _http_get(given["httpGet"], f"{path}.httpGet")
    if given.get("tcpSocket") is not None:
        probe["tcp_socket"] = _renamed(given["tcpSocket"], {"port": "port"}, f"{path}.tcpSocket")
    return kind, probe


def _http_get(value: Any, path: str) -> dict[str, Any]:
    given = _object(value, path, {"path", "port", "scheme", "httpHeaders"})
    scheme = given.get("scheme")
    headers = [_object(each, f"{path}.httpHeaders", {"name", "value"}) for each in given.get("httpHeaders") or []]
    return {
        "path": given.get("path"),
        "port": given.get("port"),
        "scheme": scheme.lower() if isinstance(scheme, str) else scheme,
        "http_headers": headers,
    }


def _registry(value: Any) -> dict[str, Any]:
    path = f"{_TEMPLATE}.registryCredentials"
    given = _object(value, path, {"server", "username", "passwordSecretRef", "identity"})
    if given.pop("identity", None):
        raise InvalidRequest(f"{path}.identity: managed identities do not exist here; say username, passwordSecretRef")
    names = {"server": "server", "username": "username", "passwordSecretRef": "password_secret_ref"}
    return {ours: given.get(name) for name, ours in names.items()}


# --- showing


def _shown_variable(name: str, value: str | SecretRef) -> dict[str, Any]:
    return {"name": name, **({"secretRef": value.secret_ref} if isinstance(value, SecretRef) else {"value": value})}


def _shown_probe(kind: str, probe: ProbeSettings) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": kind, **{name: getattr(probe, ours) for name, ours in _TIMES.items()}}
    if (http := probe.http_get) is not None:
        headers = [{"name": header.name, "value": header.value} for header in http.http_headers]
        shown["httpGet"] = {"path": http.path, "port": http.port, "scheme": "HTTP", "httpHeaders": headers}
    if (tcp := probe.tcp_socket) is not None:
        shown["tcpSocket"] = {"port": tcp.port}
    return shown


def _shown_size(size: int) -> str:
    return f"{size / 2**30:g}Gi" if size % 2**20 == 0 else str(size)


# --- shapes


def _object(value: Any, path: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path}: must be a JSON object")
    if unknown := sorted(set(value) - known):
        raise InvalidRequest(f"{path}.{unknown[0][:100]}: no such property")
    return dict(value)


def _array(value: Any, path: str, exactly: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (exactly is not None and len(value) != exactly):
        raise InvalidRequest(f"{path}: must be an array{f' of {exactly}' if exactly else ''}")
    return value


def _renamed(value: Any, names: Mapping[str, str], path: str) -> dict[str, Any]:
    given = _object(value, path, set(names))
    return {ours: given[name] for name, ours in names.items() if given.get(name) is not None}
