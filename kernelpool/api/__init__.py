"""One module a surface over the same Gateway."""
