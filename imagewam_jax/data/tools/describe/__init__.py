"""What stands in an RLDS folder that nobody has described, and a registry row that reads it."""
