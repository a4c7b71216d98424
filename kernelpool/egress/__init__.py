"""What sandboxes may reach outside of themselves: the policy, and the proxy that is the only way to listed domains."""
