"""The layouts of foreign weights, a file each: tables of rules that are read in both directions."""
