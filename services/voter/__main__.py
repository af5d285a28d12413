"""``python -m services.voter``: votes over the replicas of each layer."""

from __future__ import annotations

import typer

from services import memory
from services.bus import service
from services.passwords import PasswordFile
from services.voter import voter


def main(
    broker: service.Broker = service.DEFAULT_BROKER,
    password_file: PasswordFile = None,
    device: service.Device = service.DEFAULT_DEVICE,
    arena_mb: service.ArenaMb = service.ARENA_MB,
    json_logs: service.JsonLogs = None,
    log_level: service.LogLevel = "info",
    patience: service.Patience = service.PATIENCE_S,
    signing_key: service.SigningKey = None,
    audit_log: service.AuditLog = None,
) -> None:
    """TMR voter: takes edge/replicas, answers with edge/voted. Runs on the device."""
    memory.give_memory_back()
    service.run(
        "voter",
        service.Common(broker, device, json_logs, log_level, patience, signing_key, audit_log),
        voter.serve,
        arena_mb=arena_mb,
        readers=("codec-device", "agent"),
    )


if __name__ == "__main__":
    typer.run(main)
