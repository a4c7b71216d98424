"""The program inside every sandbox: one listener, one kernel, executions, outputs, files."""
