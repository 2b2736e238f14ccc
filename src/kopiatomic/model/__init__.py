"""Plain data that the other packages share."""
