"""What the Docker backend asks the engine for, without an engine."""

from kernelpool.backends.docker.holder import CHUNK, MOST
from kernelpool.backends.docker.labels import GATEWAY
from kernelpool.backends.docker.network import HOLDER_LIMITS
from kernelpool.backends.docker.outside import is_ours


def test_connections_that_nobody_reads_fit_half_of_a_holders_memory() -> None:
    assert HOLDER_LIMITS.memory // 2 >= MOST * 2 * (2 * CHUNK)


def test_a_network_whose_sandboxes_reach_each_other_is_not_taken_for_ours() -> None:
    icc = "com.docker.network.bridge.enable_icc"
    good = {"Labels": {GATEWAY: "t"}, "Driver": "bridge", "EnableIPv6": False, "Options": {icc: "false", "more": "1"}}

    assert is_ours(good, "t")
    assert not is_ours(good, "other")
    for wrong in ({"Options": {icc: "true"}}, {"Options": None}, {"Driver": "macvlan"}, {"EnableIPv6": True}):
        assert not is_ours({**good, **wrong}, "t"), wrong
