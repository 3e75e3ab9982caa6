"""Commands for programs that know the hosted API."""
