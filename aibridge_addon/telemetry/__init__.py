"""Observers of the record stream other than the database: one sink per file, none knowing another."""
