"""The HTTP API: routes, schemas, and the services behind them."""
