"""The Docker backend: one hardened container a session, its agent behind a Unix socket in a directory of its own.

The policy is `container.py`; `start.py` makes one of it; `backend.py` keeps account of them and finds them again;
`engine.py` and `events.py` talk to the engine, the only modules that know the `docker` package.
"""
