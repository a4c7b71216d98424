"""The directory that a bubblewrap sandbox sees as its root, built once per runtime and version, mounted read-only.

It is a copy, never the host's own /usr: a session sees no path, configuration or package of the host, works for any
uid, and shares no page cache with it. A change of kernelpool's own code makes a new `program`, not a new `root`.
`image.py` makes the same of a container image's layers; it runs where there is only the standard library, so nothing
is imported here.
"""
