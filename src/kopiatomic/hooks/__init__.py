"""What runs around the snapshots."""
