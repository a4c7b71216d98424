"""What particular clients get wrong, told by their User-Agent. Everybody else gets the contract as written."""

from __future__ import annotations


def reads_results_as_text(user_agent: str) -> bool:
    """Semantic Kernel for .NET and its relatives declare `executionResult` a string: a number or image object makes
    them throw the whole answer away."""
    return "(language=dotnet)" in user_agent.lower()


def percent_encodes_file_names(user_agent: str) -> bool:
    """aiohttp (AutoGen) writes the file names of multipart parts so, unlike everybody else."""
    return "aiohttp/" in user_agent
