"""`kiara`: click options and what is printed. The work is done in the other rooms; `kiara_export` loads when used."""
