"""Training of every model: one step loop (`engine`), one module per model, configurations as TOML files."""
