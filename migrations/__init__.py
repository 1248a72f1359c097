"""How the tables came to be: one file a change in `versions/`, applied by Alembic to SQLite and PostgreSQL alike."""
