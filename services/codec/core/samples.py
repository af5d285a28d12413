"""Images by their content, the least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict

from accelsim.int8.network import UInt8


class Samples:
    """Images that were sent once, by ``inputs.sample_hash``: at most ``nbytes`` of them, but always ``least`` images."""

    def __init__(self, nbytes: int, least: int) -> None:
        self._limit = nbytes
        self._least = least
        self._images: OrderedDict[bytes, UInt8] = OrderedDict()
        self._nbytes = 0
        self._dropped: list[bytes] = []

    def remember(self, name: bytes, image: UInt8) -> None:
        """Keep an image, uint8 of any shape, and drop what is over the limit."""
        if name not in self._images:
            self._images[name] = image
            self._nbytes += image.nbytes
        self._images.move_to_end(name)
        while self._nbytes > self._limit and len(self._images) > self._least:
            gone, dropped = self._images.popitem(last=False)
            self._nbytes -= dropped.nbytes
            self._dropped.append(gone)

    def dropped(self) -> list[bytes]:
        """The names of the images that were dropped since this was last asked and are not here again."""
        found, self._dropped = self._dropped, []
        return [name for name in dict.fromkeys(found) if name not in self._images]

    def get(self, name: bytes) -> UInt8 | None:
        """The image, as used just now; None for one that is not here."""
        if name in self._images:
            self._images.move_to_end(name)
        return self._images.get(name)
