"""Foreign weight layouts, one file each: tables of rules that are read in both directions."""
