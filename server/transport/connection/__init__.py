"""Connections: listening sockets, limits of the parser, TLS, clients that hang up."""
