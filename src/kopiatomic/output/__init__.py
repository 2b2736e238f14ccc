"""How a run is shown: to people (console) and to programs (document)."""
