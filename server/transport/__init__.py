"""Below the routes: middleware, parsing, TLS, the HTTP protocol."""
