"""A fleet on several hosts, as one of them is told of it: its own address, the network, and where the gateways are."""

from __future__ import annotations

import argparse
import ipaddress
from dataclasses import dataclass

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class Network:
    """One host's place in it. `gateways` is where its workers register; empty: its gateway is here."""

    interface: Interface
    gateways: str = ""

    def fill_in(self, text: str) -> str:
        """Return a drop-in of deploy/systemd with the addresses of this host."""
        host = str(self.interface.ip)
        values = {
            "@HOST@": host,
            "@ADDRESS@": f"[{host}]" if ":" in host else host,
            "@NETWORK@": str(self.interface.network),
            "@GATEWAYS@": self.gateways,
        }
        for name, value in values.items():
            text = text.replace(name, value)
        return text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the two flags that `read` reads."""
    parser.add_argument(
        "--network",
        metavar="ADDRESS/LENGTH",
        help="this host's address in the network that gateway and workers share, as `ip addr` shows it",
    )
    parser.add_argument(
        "--gateways",
        metavar="ADDRESS:PORT,...",
        help="no gateway here: the workers register with those on other hosts of --network",
    )


def read(options: argparse.Namespace) -> Network | None:
    """Return what the flags say, None where they say nothing.

    Raises:
        ValueError: with a sentence that names the flag.
    """
    if options.network is None:
        if options.gateways is not None:
            raise ValueError("--gateways needs --network ADDRESS/LENGTH: this host's address in their network")
        return None
    try:
        interface = ipaddress.ip_interface(options.network)
    except ValueError as error:
        raise ValueError(f"--network must be an address and a length, such as 10.0.0.1/24: {error}") from None
    if interface.network.num_addresses == 1 or interface.is_loopback:
        raise ValueError(f"--network {options.network} has no other hosts; write it like 10.0.0.1/24")
    if options.gateways is None:
        return Network(interface)
    for entry in options.gateways.split(","):
        _check_gateway(entry, interface)
    return Network(interface, options.gateways)


def _check_gateway(entry: str, interface: Interface) -> None:
    host, _, port = entry.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"--gateways has {entry!r}; each must be ADDRESS:PORT, such as 10.0.0.1:8081")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ValueError(
            f"--gateways has {host!r}; it must be an address, since the units ask no name server"
        ) from None
    if address not in interface.network or address == interface.ip:
        raise ValueError(f"--gateways has {address}, which is no other host of {interface.network} (--network)")
