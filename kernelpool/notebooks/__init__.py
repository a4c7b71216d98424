"""Notebooks: what a session ran as an nbformat document, and documents run cell by cell. No HTTP, no agent."""
