"""The `kiara-run` commands: click options and printed output. The other packages do the work."""
