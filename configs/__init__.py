"""One Python file per experiment; `common` holds the defaults."""
