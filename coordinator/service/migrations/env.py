"""What alembic runs: the steps, on the connection and in the transaction that it is given."""

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:  # --dry-run: statements are written, nothing is done
    context.configure(
        dialect_name=context.config.attributes["dialect"],
        literal_binds=True,
        transactional_ddl=False,
    )
else:
    context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
