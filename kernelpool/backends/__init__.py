"""What makes sandboxes. One file a backend, one line here."""
