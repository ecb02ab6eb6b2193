"""A policy outside of its mathematics: its config, its frozen parts, its checkpoint, its units."""
