"""The network interface of a node in a cluster, for gloo."""

from __future__ import annotations

import fcntl
import os
import socket
import struct


def use_node_interface() -> None:
    """When a worker starts: let gloo use the network interface with this node's address.

    gloo looks up the host name, which is the loopback interface on many machines: ranks on two nodes
    then never meet.
    """
    import ray

    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    address = ray.util.get_node_ip_address()
    for _, interface in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
            request = struct.pack("256s", interface.encode()[:15])
            try:
                reply = fcntl.ioctl(query.fileno(), 0x8915, request)  # SIOCGIFADDR
            except OSError:  # an interface without an address
                continue
        if socket.inet_ntoa(reply[20:24]) == address:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
            return
