"""The gateway's typed client of the agents in its sandboxes."""

from kernelpool.agents.base import Agent, Connect, FileContent, pulse
from kernelpool.agents.http import HttpAgent, connect

__all__ = ["Agent", "Connect", "FileContent", "HttpAgent", "connect", "pulse"]
