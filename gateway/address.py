"""Addresses as people write them and as the network gives them. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNKNOWN = "unknown"  # what is no address at all; it is nobody's, and not this machine's


def plain(text: str) -> str:
    """Return an address in its one spelling (an IPv4 one without its IPv6 disguise), or UNKNOWN."""
    parsed = _parsed(text)
    return UNKNOWN if parsed is None else str(parsed)


def is_loopback(host: str) -> bool:
    """This machine, and reachable from nowhere else."""
    parsed = _parsed(host)
    return host == "localhost" if parsed is None else parsed.is_loopback


def is_in(address: str, networks: Sequence[Network]) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in networks)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
