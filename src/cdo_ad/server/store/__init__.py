"""What the server keeps: tables in SQLite or PostgreSQL, images on disk by the hash of their content."""
