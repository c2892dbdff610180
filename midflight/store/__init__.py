"""What people and programs read: cells, names, dead letters and source health, derived from the log and rebuilt from it."""
