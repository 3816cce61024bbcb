"""Checks that others wrote, run against the real server: `make conformance`."""
