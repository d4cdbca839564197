"""`kiara`: click options and what is printed. All work is done in the other rooms, and `kiara_export` loads when used."""
