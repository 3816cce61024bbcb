"""Makes the shared fixtures known here."""

from tests.mcp_fixtures import anyio_backend, client, mode, pictures_folder, server, studio

__all__ = ["anyio_backend", "client", "mode", "pictures_folder", "server", "studio"]
