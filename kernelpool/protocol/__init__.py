"""The Jupyter messaging protocol without I/O: messages, the execution machine, limits."""
