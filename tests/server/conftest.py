"""Makes the shared fixtures known here."""

from tests.mcp_fixtures import any_client, anyio_backend, client, mode, pictures_folder, server, studio

__all__ = ["any_client", "anyio_backend", "client", "mode", "pictures_folder", "server", "studio"]
