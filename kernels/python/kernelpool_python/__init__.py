"""The Python kernel of a session: ipykernel's own classes, with their slow and their fragile parts replaced."""
