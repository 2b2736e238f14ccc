"""What a person or a file specifies for a run."""
