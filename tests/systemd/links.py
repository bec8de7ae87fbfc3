#!/usr/bin/env python3
"""What is attached, by the ids that the kernel has for it.

links.py ids DIRECTORY    prints link:ID and prog:ID of every pinned link
links.py alive ID...      prints those that still are in the kernel
"""

import ctypes
import os
import platform
import struct
import sys

CALL = {"x86_64": 321, "aarch64": 280}[platform.machine()]
OBJ_GET, PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, LINK_GET_FD_BY_ID = 7, 13, 15, 30
LIBC = ctypes.CDLL(None, use_errno=True)


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = LIBC.syscall(CALL, command, buffer, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def ids(directory):
    for name in sorted(os.listdir(directory)):
        if not name.startswith("link-"):
            continue
        path = ctypes.create_string_buffer(os.path.join(directory, name).encode())
        link = bpf(OBJ_GET, struct.pack("QII", ctypes.addressof(path), 0, 0))
        info = ctypes.create_string_buffer(256)
        bpf(OBJ_GET_INFO_BY_FD, struct.pack("IIQ", link, 256, ctypes.addressof(info)))
        os.close(link)
        # struct bpf_link_info begins with type, id, prog_id.
        _, link_id, program = struct.unpack_from("III", info)
        print(f"link:{link_id}\nprog:{program}")


def alive(wanted):
    for one in wanted:
        kind, number = one.split(":")
        try:
            os.close(bpf(LINK_GET_FD_BY_ID if kind == "link" else PROG_GET_FD_BY_ID, struct.pack("I", int(number))))
            print(one)
        except FileNotFoundError:
            pass


if __name__ == "__main__":
    ids(sys.argv[2]) if sys.argv[1] == "ids" else alive(sys.argv[2:])
