"""Exit 0 if the service named by R2F_SERVICE says on its broker that it is online, else 1 with one line: a health check.

Reads the retained r2f/v1/{R2F_DEVICE}/state/{R2F_SERVICE} from R2F_BROKER, over TLS with the certificates in R2F_IDENTITY.
The broker publishes the service's last will there when it dies, so this also sees a service that lost its broker. Light on
purpose: it runs every few seconds.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

TIMEOUT_S = 4.0


def main() -> int:
    """See the module."""
    broker = urlsplit(os.environ["R2F_BROKER"])
    topic = f"r2f/v1/{os.environ['R2F_DEVICE']}/state/{os.environ['R2F_SERVICE']}"
    states: list[bytes] = []
    seen = threading.Event()

    def on_message(_client: Client, _userdata: object, message: MQTTMessage) -> None:
        states.append(bytes(message.payload))
        seen.set()

    def on_connect(connected: Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object) -> None:
        if not reason.is_failure:
            connected.subscribe(topic)

    client = Client(CallbackAPIVersion.VERSION2)
    home = Path(os.environ["R2F_IDENTITY"])
    client.tls_set(*(str(home / name) for name in ("ca.pem", "certificate.pem", "key.pem")))
    client.on_message = on_message
    client.on_connect = on_connect
    client.connect(broker.hostname or "127.0.0.1", broker.port or 8883)
    client.loop_start()
    answered = seen.wait(TIMEOUT_S)
    client.loop_stop()
    if not answered:
        print(f"{topic}: no state retained", file=sys.stderr)
        return 1
    online = msgspec.msgpack.decode(states[0])["online"]
    print(f"{topic}: {'online' if online else 'offline'}", file=sys.stderr)
    return 0 if online else 1


if __name__ == "__main__":
    sys.exit(main())
