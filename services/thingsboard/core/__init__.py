"""What the bridge to ThingsBoard computes; it knows no bus and no connection (docs/architecture.md, "Layout")."""
