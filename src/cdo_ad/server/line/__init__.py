"""The line: where images come from, and where decisions go."""
