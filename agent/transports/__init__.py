"""Thin shells between sockets and sessions."""
