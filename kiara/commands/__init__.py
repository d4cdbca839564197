"""The `kiara` command line: click options and output. `kiara.face` does the work."""
