"""What the README's numbers come from: `make bench` measures everything side by side in one run and prints a table."""
