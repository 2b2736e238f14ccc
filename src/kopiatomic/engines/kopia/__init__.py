"""kopia."""
