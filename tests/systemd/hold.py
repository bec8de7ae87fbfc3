#!/usr/bin/env python3
"""hold.py PID NAME SECONDS: keeps one thread of a process from running, and no other (ptrace), at most so long."""

import ctypes
import os
import sys
import time

SEIZE, INTERRUPT = 0x4206, 0x4207
LIBC = ctypes.CDLL(None, use_errno=True)


def ptrace(request, thread):
    if LIBC.ptrace(request, thread, None, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def comm(pid, thread):
    with open(f"/proc/{pid}/task/{thread}/comm") as file:
        return file.read().strip()


pid, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
threads = [int(thread) for thread in os.listdir(f"/proc/{pid}/task") if comm(pid, thread) == name]
assert len(threads) == 1, f"threads of process {pid} with the name {name}: {threads}"
ptrace(SEIZE, threads[0])
ptrace(INTERRUPT, threads[0])
# The end of this process lets go of the thread. If the thread ends first, somebody has to take note of it.
end = time.monotonic() + seconds
while time.monotonic() < end:
    done, status = os.waitpid(threads[0], os.WNOHANG | 0x40000000)
    if done and not os.WIFSTOPPED(status):
        break
    time.sleep(0.05)
