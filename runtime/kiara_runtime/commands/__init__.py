"""`kiara-run`: click options and what is printed. All work is done in the other rooms."""
