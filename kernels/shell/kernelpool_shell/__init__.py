"""The shell kernel of a session: Jupyter's sockets here, the code in a bash that lives as long as the session."""
