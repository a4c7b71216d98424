"""Warm sandboxes: how many to start and retire (plan), and starting and handing them out (pool)."""
