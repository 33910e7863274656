"""One file a family: its config fields and its architecture, as data over shared blocks."""
