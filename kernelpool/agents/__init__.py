"""The gateway's typed client of the agents in its sandboxes."""

from kernelpool.agents.base import Agent, Channels, Connect, FileContent, pulse
from kernelpool.agents.container import ContainerAgent
from kernelpool.agents.forward import Answer, Forward
from kernelpool.agents.http import HttpAgent, connect

__all__ = [
    "Agent",
    "Answer",
    "Channels",
    "Connect",
    "ContainerAgent",
    "FileContent",
    "Forward",
    "HttpAgent",
    "connect",
    "pulse",
]
