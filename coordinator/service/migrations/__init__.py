"""Steps of the database's schema, one file each; alembic runs them in order."""
