"""How a run is shown: to a person (console) and to a program (document)."""
