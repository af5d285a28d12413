"""The broker: Mosquitto where there is one, else the embedded one; its configuration; the link between two of them."""
