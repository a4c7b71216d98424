"""The MCP server of each pool: tools and resources over the same sessions. Only `server` and below need the SDK."""
