"""The same job on other engines: one file each, run in a virtual environment of its own; nothing here imports Midflight."""
