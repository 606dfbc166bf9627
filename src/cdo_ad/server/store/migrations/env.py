"""Alembic's entry: run the migrations over the connection that `open_database` gives."""

from __future__ import annotations

from alembic import context

from cdo_ad.server.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
