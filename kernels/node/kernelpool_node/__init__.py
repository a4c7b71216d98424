"""The Node.js kernel of a session: Jupyter's sockets here, the code in a process of Node.js (`../host`)."""
