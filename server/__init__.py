"""The MCP server of PathSynth: protocol, transports and resources; the tools are in `tools`, the science
in `pathsynth`."""
