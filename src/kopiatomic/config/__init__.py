"""What a person or a file says about a run."""
