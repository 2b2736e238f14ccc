"""What is told of runs that should have been."""
