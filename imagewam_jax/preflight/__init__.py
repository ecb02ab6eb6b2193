"""Everything that would stop a run, found before it begins, all of it at once."""
