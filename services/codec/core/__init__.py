"""The core of this service: pure functions and plain structs, no bus and no asyncio."""
