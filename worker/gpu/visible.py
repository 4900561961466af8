"""Which GPU is `cuda:0`? The drivers' libraries ignore CUDA_VISIBLE_DEVICES and number GPUs by their place on the bus,
CUDA by what it guesses to be the fastest, of those that are visible. So a GPU is found once, and then known by UUID."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from worker.gpu.reader import Card, Reader, Unavailable

_DEVICE = re.compile(r"(?:cuda|hip)(?::([0-9]{1,3}))?")


def is_gpu(device: str) -> bool:
    """Say whether the device is one that a driver could know of."""
    return _DEVICE.fullmatch(device) is not None


def find_card(device: str, cards: Sequence[Card], reader: Reader, environment: Mapping[str, str]) -> Card:
    """Return the GPU that this process calls `device`, such as cuda:0.

    Raises:
        Unavailable: there is no such GPU, or it cannot be told which one it is.
    """
    found = _DEVICE.fullmatch(device)
    number = int(found[1] or 0) if found else 0
    seen = list(cards)
    for variable in reader.visible:
        given = environment.get(variable)
        if given is None:
            continue
        if _numbers_are_unclear(seen, reader, environment) and re.search(r"(?:^|,)\s*[0-9]", given):
            raise _unclear(device, reader)
        seen = _narrowed(seen, given)
    if number >= len(seen):
        raise Unavailable(f"{device} is not among the {len(seen)} GPUs that this process may use, of {len(cards)}")
    named = any(environment.get(variable) is not None for variable in reader.visible)
    if not named and _numbers_are_unclear(seen, reader, environment):
        raise _unclear(device, reader)
    return seen[number]


def _narrowed(cards: list[Card], given: str) -> list[Card]:
    """Return what a variable such as CUDA_VISIBLE_DEVICES leaves; as for CUDA, the first impossible entry ends it."""
    left: list[Card] = []
    for entry in map(str.strip, given.split(",")):
        if re.fullmatch(r"[0-9]{1,3}", entry):
            if int(entry) >= len(cards):
                break
            left.append(cards[int(entry)])
        elif entry.startswith("MIG-"):
            left.append(
                Card(None, (entry,), "")
            )  # a slice of a GPU; the driver knows it by this name and lists it nowhere
        else:
            # The beginning of a UUID is enough, if no other begins so.
            matching = [card for card in cards if entry and any(name.startswith(entry) for name in card.names)]
            if len(matching) != 1:
                break
            left.append(matching[0])
    return left


def _numbers_are_unclear(cards: Sequence[Card], reader: Reader, environment: Mapping[str, str]) -> bool:
    """Among GPUs of one model, CUDA too goes by the bus; among several it guesses, unless it is told not to."""
    if reader.order is None or environment.get(reader.order) == "PCI_BUS_ID":
        return False
    return len({card.model for card in cards if card.model}) > 1


def _unclear(device: str, reader: Reader) -> Unavailable:
    return Unavailable(
        f"{device} may be any of several GPUs of different models: set {reader.order}=PCI_BUS_ID, or give the UUID in "
        f"{reader.visible[-1]}"
    )
